// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/arrival_buffer.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

namespace snowfabric {

ArrivalBuffer::ArrivalBuffer(std::size_t capacity_pages)
    : gfns_(std::clamp<std::size_t>(capacity_pages, 1, kFree)),
      order_(gfns_.size()),
      table_(std::bit_ceil(2 * gfns_.size()), kFree),
      bytes_(gfns_.size() * kPageSize),
      staging_(kStagingPages * kPageSize) {}

bool ArrivalBuffer::add(Gfn page, std::span<const std::byte, kPageSize> bytes) noexcept {
  // The table is ours to write; find() is const for the readers' sake.
  auto& entry = table_[static_cast<std::size_t>(find(page) - table_.data())];
  if (entry != kFree || full()) return false;
  entry = static_cast<std::uint16_t>(nb_pages_);
  gfns_[nb_pages_] = page;
  std::memcpy(slot(nb_pages_), bytes.data(), kPageSize);
  ++nb_pages_;
  return true;
}

/// @return the page's entry, or the free one where it belongs: half of the table is always free
const std::uint16_t* ArrivalBuffer::find(Gfn page) const noexcept {
  const std::size_t mask = table_.size() - 1;
  // Fibonacci hashing: neighbours spread over the table instead of piling up.
  std::size_t i = (page.value * 0x9e37'79b9'7f4a'7c15ULL >> 40U) & mask;
  while (table_[i] != kFree && gfns_[table_[i]] != page) i = (i + 1) & mask;
  return &table_[i];
}

void ArrivalBuffer::clear() noexcept {
  nb_pages_ = 0;
  std::ranges::fill(table_, kFree);
}

void ArrivalBuffer::sort() noexcept {
  const auto used = std::span{order_}.first(nb_pages_);
  std::iota(used.begin(), used.end(), std::uint16_t{0});
  std::ranges::sort(used, {}, [this](std::uint16_t slot) { return gfns_[slot]; });
}

/// @return pages of the run that begins at order_[at], no more than gather() can hand out
std::size_t ArrivalBuffer::run_at(std::size_t at) const noexcept {
  std::size_t nb_pages = 1;
  bool in_place = true;
  for (; at + nb_pages < nb_pages_; ++nb_pages) {
    const std::size_t previous = order_[at + nb_pages - 1];
    const std::size_t next = order_[at + nb_pages];
    if (gfns_[next].value != gfns_[previous].value + 1) break;
    if (in_place && next == previous + 1) continue;
    if (nb_pages >= kStagingPages) break;
    in_place = false;
  }
  return nb_pages;
}

/// Pages that lie side by side already are handed out where they are.
std::span<const std::byte> ArrivalBuffer::gather(std::size_t at, std::size_t nb_pages) noexcept {
  const std::size_t bytes = nb_pages * kPageSize;
  std::size_t in_place = 1;
  while (in_place < nb_pages && order_[at + in_place] == order_[at] + in_place) ++in_place;
  if (in_place == nb_pages) return {slot(order_[at]), bytes};
  for (std::size_t i = 0; i < nb_pages; ++i)
    std::memcpy(staging_.data() + i * kPageSize, slot(order_[at + i]), kPageSize);
  return {staging_.data(), bytes};
}

}  // namespace snowfabric
