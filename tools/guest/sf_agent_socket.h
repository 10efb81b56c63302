// SPDX-License-Identifier: BSD-3-Clause
#pragma once
/// Where programs of the same VM reach sf-agent: /run/sf-agent.sock, or what the environment
/// variable SF_AGENT_SOCKET names (for tests).

/// @return a listening socket that the caller owns, an older file replaced; -1 with errno
int sf_agent_listen(void);

/// @return a connected socket that the caller owns; -1 with errno, ENOENT or ECONNREFUSED: no agent
/// runs
int sf_agent_connect(void);
