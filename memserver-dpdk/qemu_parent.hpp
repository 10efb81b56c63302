// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/result.hpp"
#include "memserver-dpdk/cow_memory.hpp"
#include "memserver-dpdk/frozen_memory.hpp"
#include "memserver-dpdk/image.hpp"

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

enum class FreezeKind : std::uint8_t {
  kSnapshot,  ///< QEMU's background snapshot: all memory is taken in first
  kShim,      ///< write protection by the preload library: memory stays where it is
};
[[nodiscard]] std::string_view to_string(FreezeKind kind) noexcept;

/// A parent's memory and state as they were at one instant. The parent runs on.
struct FrozenParent {
  FreezeKind kind{};
  std::string why_no_shim{};          ///< empty, or why the preload library could not be used
  FrozenMemory memory;                ///< what came by the stream
  std::shared_ptr<CowMemory> live{};  ///< the first pages, if they stayed in place
  Descriptor descriptor;              ///< complete but for the memserver's address
  std::chrono::steady_clock::time_point since{};  ///< when it was stopped
  std::chrono::microseconds pause{0};             ///< the vCPUs stood still
  std::vector<PageRange> zeros{};  ///< not read: known to be zero, or avoided; in any order
  /// Left out because they were free in the guest at the instant, and what the guest called free.
  std::uint64_t nb_avoided_pages = 0, nb_free_pages = 0;
  std::string why_none_avoided{};  ///< empty, or why the guest could not be asked

  /// Scans the memory: as Image::open. Nothing can change the image, nor does the parent's death.
  /// @param stop  ends the scan once it is set
  [[nodiscard]] Result<Image> open_image(std::optional<int> progress_fd,
                                         const std::atomic<bool>& stop) const;
};

/// Freezes a running QEMU: by write protection if it was started with the preload library and that
/// works, else by its own background snapshot, which takes seconds. Nothing of the parent's
/// settings is changed for longer than the call. Control path. On all CPUs, like
/// CowMemory::attach.
/// @return EROFS: the VM has a writable disk, which is not frozen; EBUSY: a clone without all its
///         memory, or memory that another memserver holds; EREMOTEIO: QEMU refused, with
///         its words; ENOTSUP: a RAM that QEMU cannot write-protect; as Qmp and the stream reader
[[nodiscard]] Result<FrozenParent> freeze_qemu(const QemuFreezeOptions& options,
                                               const std::atomic<bool>& stop);

}  // namespace snowfabric
