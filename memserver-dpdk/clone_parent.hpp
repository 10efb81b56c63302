// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <optional>
#include <string>

#include <sys/types.h>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/qmp.hpp"

namespace snowfabric {

/// A clone that is to be a parent has all its memory first: what it lacks could come by no other
/// way than through its memtap, page by page, for its clones as well (docs/design.md).
/// Has its memtap fetch the rest while the clone runs. Blocks as long as pages come.
/// @param memtap_path  socket of the memtap that serves it
/// @param stop         gives up once it is set; the clone gets its memory all the same
/// @return whether that memtap knows the process; EREMOTEIO: it cannot, with its words; ETIMEDOUT:
///         no page came for a minute; ECANCELED; as LineSocket
[[nodiscard]] Result<bool> complete_clone(const std::string& memtap_path, pid_t clone,
                                          const std::atomic<bool>& stop,
                                          std::optional<int> progress_fd);

/// @return EBUSY: the VM is a clone by postcopy whose migration has not ended
[[nodiscard]] Result<void> refuse_incomplete_clones(Qmp& qmp);

/// QEMU's refusal to freeze, which does not know of a userfaultfd that is not its own.
[[nodiscard]] Error explained(const Error& refusal, pid_t qemu);

}  // namespace snowfabric
