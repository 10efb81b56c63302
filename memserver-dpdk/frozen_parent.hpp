// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/result.hpp"
#include "memserver-dpdk/cow_memory.hpp"
#include "memserver-dpdk/frozen_memory.hpp"
#include "memserver-dpdk/image.hpp"
#include "memserver-dpdk/nominated_memory.hpp"

namespace snowfabric {

enum class FreezeKind : std::uint8_t {
  kSnapshot,  ///< QEMU's background snapshot: all memory is taken in first
  kShim,      ///< write protection by the preload library: memory stays where it is
  kLogDirty,  ///< of a Xen domain: copied while it runs, and in the pause what it wrote meanwhile
  kNominate,  ///< of a Xen domain: memory stays where it is, and is copied when the domain touches
              ///< it
};
[[nodiscard]] std::string_view to_string(FreezeKind kind) noexcept;

/// A parent's memory and state as they were at one instant. The parent runs on.
struct FrozenParent {
  FreezeKind kind{};
  std::string why_no_shim{};          ///< empty, or why the preload library could not be used
  FrozenMemory memory;                ///< what came by the stream
  std::shared_ptr<CowMemory> live{};  ///< the first pages, if they stayed in place
  std::shared_ptr<NominatedMemory> nominated{};   ///< all pages of a Xen domain, likewise
  Descriptor descriptor;                          ///< complete but for the memserver's address
  std::chrono::steady_clock::time_point since{};  ///< when it was stopped
  std::chrono::microseconds pause{0};             ///< the vCPUs stood still
  std::vector<PageRange> zeros{};  ///< not read: known to be zero, or avoided; in any order
  /// Left out because they were free in the guest at the instant, and what the guest called free.
  std::uint64_t nb_avoided_pages = 0, nb_free_pages = 0;
  /// Figures of this kind of freeze alone, by name.
  std::vector<std::pair<std::string, std::uint64_t>> details{};
  std::string why_none_avoided{};  ///< empty, or why the guest could not be asked

  /// Scans the memory: as Image::open. Nothing can change the image, nor does the parent's death.
  /// @param hash_pages  as ImageOptions
  /// @param stop  ends the scan once it is set
  [[nodiscard]] Result<Image> open_image(bool hash_pages, std::optional<int> progress_fd,
                                         const std::atomic<bool>& stop) const;
};

/// Now, UNIX time: for the descriptor.
[[nodiscard]] std::uint64_t wall_clock_ns();

}  // namespace snowfabric
