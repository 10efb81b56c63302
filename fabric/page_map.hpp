// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// A number for each of a bounded number of pages, which are below 2^32: a hash table of a fixed
/// size with linear probing (Knuth, TAOCP 3, 6.4, algorithms L and R).
class PageMap {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  /// @param nb_pages  most pages in it at a time
  explicit PageMap(std::size_t nb_pages)
      : entries_(std::bit_ceil(2 * nb_pages + 2)),
        shift_{64 - static_cast<unsigned>(std::countr_zero(entries_.size()))} {}

  /// @return kNone: the page is not in it
  [[nodiscard]] std::uint32_t find(Gfn page) const noexcept {
    return entries_[place_of(page)].number;
  }
  /// @pre the page is not in it, there is room, and `number` is not kNone
  void insert(Gfn page, std::uint32_t number) noexcept {
    entries_[place_of(page)] = {static_cast<std::uint32_t>(page.value), number};
  }
  /// @pre the page is in it
  void erase(Gfn page) noexcept {
    std::size_t hole = place_of(page);
    for (std::size_t i = after(hole); entries_[i].number != kNone; i = after(i)) {
      // Whoever was put behind the hole for want of room may move into it.
      const std::size_t home = home_of(Gfn{entries_[i].page});
      if (((i - home) & mask()) < ((i - hole) & mask())) continue;
      entries_[hole] = entries_[i];
      hole = i;
    }
    entries_[hole] = {};
  }

 private:
  struct Entry {
    std::uint32_t page = 0;
    std::uint32_t number = kNone;
  };

  [[nodiscard]] std::size_t mask() const noexcept { return entries_.size() - 1; }
  [[nodiscard]] std::size_t after(std::size_t i) const noexcept { return (i + 1) & mask(); }
  [[nodiscard]] std::size_t home_of(Gfn page) const noexcept {
    return static_cast<std::size_t>((page.value * 0x9e37'79b9'7f4a'7c15U) >> shift_);
  }
  /// Where it is, or belongs.
  [[nodiscard]] std::size_t place_of(Gfn page) const noexcept {
    std::size_t i = home_of(page);
    while (entries_[i].number != kNone && entries_[i].page != page.value) i = after(i);
    return i;
  }

  std::vector<Entry> entries_;
  unsigned shift_;
};

}  // namespace snowfabric
