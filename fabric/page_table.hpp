// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/time.hpp"
#include "fabric/client_table.hpp"

namespace snowfabric {

/// What the server remembers of a page.
struct PageSlot {
  std::uint32_t last_multicast = 0;                     ///< in PageTable's time; 0 = never
  ClientTable::Index last_client = ClientTable::kNone;  ///< who asked last
  std::uint8_t fragments = 0;    ///< wanted while pending; all bits = whole page
  std::uint8_t queued : 2 = 0;   ///< bit p: an entry stands in the queue of priority p
  bool pending : 1 = false;      ///< wanted and not yet sent: queue entries without it are stale
  bool shared : 1 = false;       ///< pending for more than one client
  bool missed : 1 = false;       ///< pending for one who missed it: it gets a frame of its own
  bool sent_to_one : 1 = false;  ///< went out to one since it last went to all
};
static_assert(sizeof(PageSlot) == 8);

/// A slot a page. Times in it are short: 4 us each since a start that age() moves on. When it does,
/// what is older than an hour becomes just that, old.
class PageTable {
 public:
  explicit PageTable(std::size_t nb_pages) : slots_(nb_pages) {}

  [[nodiscard]] PageSlot& operator[](Gfn page) noexcept { return slots_[page.value]; }
  /// Asks the cache for a slot, if there is such a page.
  void prefetch(Gfn page) const noexcept {
    if (page.value < slots_.size()) __builtin_prefetch(&slots_[page.value], 1);
  }

  /// Keeps `now` within what a slot can hold. Walks over all slots, at first and every 3.6 hours.
  void age(Nanos now) noexcept {
    if (now >= start_ && now - start_ < kUnit * kLast) [[likely]]
      return;
    const Nanos start = now - kUnit * kKept;
    const std::int64_t moved = (start - start_) / kUnit;
    for (PageSlot& slot : slots_)
      if (slot.last_multicast != kNotYet)
        slot.last_multicast = slot.last_multicast > moved + kLongAgo
                                  ? static_cast<std::uint32_t>(slot.last_multicast - moved)
                                  : kLongAgo;
    start_ += kUnit * moved;
  }
  /// @pre age() was called within the last hour before `now`
  void went_to_all(PageSlot& slot, Nanos now) const noexcept {
    slot.last_multicast = static_cast<std::uint32_t>((now - start_) / kUnit) + kLongAgo + 1;
    slot.sent_to_one = false;
  }
  [[nodiscard]] static bool was_multicast(const PageSlot& slot) noexcept {
    return slot.last_multicast != kNotYet;
  }
  /// When it last went to all; kNever also if that is long ago.
  [[nodiscard]] Nanos last_multicast(const PageSlot& slot) const noexcept {
    return slot.last_multicast <= kLongAgo ? kNever
                                           : start_ + kUnit * (slot.last_multicast - kLongAgo - 1);
  }

 private:
  static constexpr Nanos kUnit{4096};
  static constexpr std::uint32_t kNotYet = 0, kLongAgo = 1;
  static constexpr std::int64_t kLast = 0xf000'0000;  // 4.6 h: an hour and a quarter of them are
  static constexpr std::int64_t kKept = 0x4000'0000;  // kept when the start moves on

  std::vector<PageSlot> slots_;
  Nanos start_ = kNever;
};

}  // namespace snowfabric
