// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/presence.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/domain.hpp"

/// The bitmap that a guest's sf-xen-agent shares with its host (guest_bitmap_layout.h). The guest
/// may write anything there, and what it writes falsely spoils nothing but itself. Control path.
namespace snowfabric::xen {

/// Pages from page 0 on that a bitmap of so many pages of RAM takes, with its header.
[[nodiscard]] std::uint64_t bitmap_pages_for(std::uint64_t nb_pages) noexcept;

/// Where the agent says it is. @param nb_pages  of the guest's RAM
/// @return ENOENT: there is no agent; EPROTO: it says nonsense
[[nodiscard]] Result<PageRange> announced_bitmap(const Domain& domain, std::uint64_t nb_pages);

/// Bit p % 64 of word p / 64: page p was free at some moment of the call.
using FreeWords = std::vector<std::uint64_t>;

/// Asks the agent of a running guest, and waits for it. Once it has answered it claims nothing
/// until end_question(): what it found is of this guest, and a clone that wakes up within must not
/// go by it.
/// @param bitmap   as announced_bitmap()
/// @param stop     once set: gives up; may be null
/// @return ENOTSUP: the guest refuses, with its words; ETIMEDOUT; ECANCELED; EPROTO: there is no
///         bitmap of that size; or what a call reported
[[nodiscard]] Result<FreeWords> ask_free_pages(const Domain& domain, PageRange bitmap,
                                               std::uint64_t nb_pages,
                                               std::chrono::milliseconds patience,
                                               const std::atomic<bool>* stop);

/// The guest that was asked is no longer about to be frozen.
void end_question(const Domain& domain) noexcept;

/// A clone's bitmap, mapped here: memtap and the guest flip the bits of the same words.
class GuestBitmap {
 public:
  /// For a clone that has not run: it has its parent's bitmap, or anything. Every page becomes
  /// absent but for those of the bitmap, which are there.
  /// @param where  pages of the clone that are not evicted
  [[nodiscard]] static Result<GuestBitmap> reset(const Domain& domain, PageRange where,
                                                 std::uint64_t nb_pages);
  /// For one whose memtap died. What that had claimed and not put becomes absent.
  [[nodiscard]] static Result<GuestBitmap> take_over(const Domain& domain, PageRange where,
                                                     std::uint64_t nb_pages);

  /// Valid as long as this object.
  [[nodiscard]] Presence presence() const noexcept;

 private:
  GuestBitmap(ForeignPages pages, std::uint64_t nb_pages) noexcept
      : pages_{std::move(pages)}, nb_pages_{nb_pages} {}
  [[nodiscard]] static Result<GuestBitmap> map(const Domain& domain, PageRange where,
                                               std::uint64_t nb_pages);

  ForeignPages pages_;
  std::uint64_t nb_pages_;
};

}  // namespace snowfabric::xen
