// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// Which of the VM's pages are free, for a host that is about to fork it: docs/guest-channel.md.

/// Starts a process that answers at the port org.snowfabric.free.0, or what the environment
/// variable SF_FREE_PORT names (for tests), until its parent ends. It ends by itself where there is
/// no such port. Call it before any thread is started.
/// @return 0; -1 with errno
int sf_free_start(void);
