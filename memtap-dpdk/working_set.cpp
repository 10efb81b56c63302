// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/working_set.hpp"

#include <algorithm>
#include <numeric>

namespace snowfabric {

WorkingSet::WorkingSet(std::vector<PageRange> ranges)
    : ranges_{std::move(ranges)}, by_gfn_(ranges_.size()) {
  places_.reserve(ranges_.size());
  for (const PageRange& range : ranges_) {
    places_.push_back(nb_pages_);
    nb_pages_ += range.nb_pages;
  }
  std::iota(by_gfn_.begin(), by_gfn_.end(), 0U);
  std::ranges::sort(by_gfn_, {}, [this](std::uint32_t i) { return ranges_[i].first.value; });
}

std::optional<std::uint64_t> WorkingSet::find(Gfn page) const noexcept {
  const auto after = std::ranges::upper_bound(
      by_gfn_, page.value, {}, [this](std::uint32_t i) { return ranges_[i].first.value; });
  if (after == by_gfn_.begin()) return std::nullopt;
  const std::uint32_t i = *(after - 1);
  const std::uint64_t done = page.value - ranges_[i].first.value;
  if (done >= ranges_[i].nb_pages) return std::nullopt;
  return places_[i] + done;
}

void WorkingSet::advance(Cursor& at) const noexcept {
  ++at.place;
  if (++at.done < ranges_[at.range].nb_pages) return;
  ++at.range;
  at.done = 0;
}

}  // namespace snowfabric
