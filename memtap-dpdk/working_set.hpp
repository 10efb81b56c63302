// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// The pages that earlier clones had, in the order in which one first touched them. A clone is not
/// given all at once, or it would hold many before it is of use: it has a lead over what it has
/// touched. Where it is one sees by markers, one page in 48, which are left to its own faults. (The
/// marker of Linux's readahead, mm/readahead.c, is found without a fault.) One thread; no
/// allocation after the constructor.
class WorkingSet {
 public:
  static constexpr std::uint64_t kMarkerStep = 48;         ///< pages
  static constexpr std::uint64_t kLead = 2 * kMarkerStep;  ///< pages, from the touched one on

  WorkingSet() = default;
  /// @pre no range is empty, no page stands there twice
  explicit WorkingSet(std::vector<PageRange> ranges);

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }

  /// A place in the order.
  struct Cursor {
    std::uint64_t place = 0;
    std::uint32_t range = 0;  ///< the index of its range
    std::uint32_t done = 0;   ///< pages of that
  };
  /// @return the place of a page
  [[nodiscard]] std::optional<std::uint64_t> find(Gfn page) const noexcept;
  /// @pre at.place < nb_pages()
  [[nodiscard]] Gfn page(const Cursor& at) const noexcept {
    return {ranges_[at.range].first.value + at.done};
  }
  void advance(Cursor& at) const noexcept;
  [[nodiscard]] static bool is_marker(const Cursor& at) noexcept {
    return at.place != 0 && at.place % kMarkerStep == 0;
  }

 private:
  std::vector<PageRange> ranges_;
  std::vector<std::uint64_t> places_;  // of the first page of each range
  std::vector<std::uint32_t> by_gfn_;  // the ranges' indices
  std::uint64_t nb_pages_ = 0;
};

}  // namespace snowfabric
