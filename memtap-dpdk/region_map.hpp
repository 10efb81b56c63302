// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "memtap-dpdk/handshake.hpp"

namespace snowfabric {

/// Guest address <-> page of the image, over regions that do not overlap (parse_handshake sees to
/// that). Binary search: a guest has a handful of regions.
class RegionMap {
 public:
  /// Where a page is mapped, and how many pages follow it there, itself included.
  struct Place {
    std::uint64_t address{};
    std::uint64_t nb_pages{};
  };

  explicit RegionMap(std::vector<Region> regions)
      : by_base_{std::move(regions)}, by_offset_{by_base_} {
    std::ranges::sort(by_base_, {}, &Region::base);
    std::ranges::sort(by_offset_, {}, &Region::offset);
  }

  [[nodiscard]] std::optional<Gfn> page_at(std::uint64_t address) const noexcept {
    const Region* r = find(by_base_, &Region::base, address);
    if (r == nullptr) return std::nullopt;
    return Gfn{(address - r->base + r->offset) / kPageSize};
  }

  [[nodiscard]] std::optional<Place> locate(Gfn page) const noexcept {
    const std::uint64_t offset = page.value * kPageSize;
    const Region* r = find(by_offset_, &Region::offset, offset);
    if (r == nullptr) return std::nullopt;
    return Place{r->base + (offset - r->offset), (r->offset + r->size - offset) / kPageSize};
  }

  /// In image order.
  [[nodiscard]] std::span<const Region> regions() const noexcept { return by_offset_; }

 private:
  static const Region* find(const std::vector<Region>& sorted, std::uint64_t Region::* start,
                            std::uint64_t value) noexcept {
    auto next = std::ranges::upper_bound(sorted, value, {}, start);
    if (next == sorted.begin()) return nullptr;
    const Region& r = *--next;
    return value - r.*start < r.size ? &r : nullptr;
  }

  std::vector<Region> by_base_;
  std::vector<Region> by_offset_;
};

}  // namespace snowfabric
