// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/frozen_parent.hpp"

namespace snowfabric {

struct QemuFreezeOptions {
  std::string qmp_path;        ///< a monitor of the parent that nobody else holds
  std::uint64_t image_id = 0;  ///< not 0: the descriptor needs it before the memory is read
  std::uint32_t epoch = 1;
  std::optional<int> progress_fd{};
  /// The host's end of the port at which the guest says what is free; empty: it is not asked.
  std::string free_pages_path{};
  /// Socket of the memtap that serves the parent, if that is a clone itself; empty: it is none, or
  /// has all its memory.
  std::string memtap_path{};
};

/// Freezes a running QEMU: by write protection if it was started with the preload library and that
/// works, else by its own background snapshot, which takes seconds. Nothing of the parent's
/// settings is changed for longer than the call, nor does it stay stopped, though this process be
/// killed: BorrowedParent. Control path. On all CPUs, like CowMemory::attach.
/// @return EROFS: the VM has a writable disk, which is not frozen; EBUSY: a clone without all its
///         memory, or memory that another memserver holds; EREMOTEIO: QEMU refused, with
///         its words; ENOTSUP: RAM that somebody writes past QEMU, or that it cannot write-protect;
///         ETIMEDOUT: it stalls; ECANCELED: stopped while it sends nothing; as Qmp and the stream
///         reader
[[nodiscard]] Result<FrozenParent> freeze_qemu(const QemuFreezeOptions& options,
                                               const std::atomic<bool>& stop);

}  // namespace snowfabric
