// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/secret_bytes.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

/// Pages that arrive in fragments. A set-associative table of a fixed size: a page whose set is
/// full displaces the oldest partial page of the set. Also learns of unasked pages, so it is not
/// bounded by what is in flight.
class Reassembler {
 public:
  /// @param nb_pages  partial pages held at once; rounded up to a power of two of sets
  explicit Reassembler(std::size_t nb_pages)
      : nb_sets_{std::bit_ceil((nb_pages + kWays - 1) / kWays)}, slots_(nb_sets_ * kWays) {}

  /// Adds a fragment that wire::parse() has accepted.
  /// @return the whole page once its last fragment is here, valid until the next call; else empty
  std::span<const std::byte> add(const wire::PageBody& body, std::span<const std::byte> data) {
    const Gfn page{body.gfn.host()};
    Slot& slot = find_or_evict(page);
    const std::uint8_t all = static_cast<std::uint8_t>((1U << body.nb_fragments) - 1);
    if (slot.have == 0 || slot.crc32c != body.crc32c.host() ||
        slot.nb_fragments != body.nb_fragments)
      slot = {page, body.crc32c.host(), ++clock_, body.nb_fragments, 0, std::move(slot.bytes)};
    const std::size_t offset = body.fragment * wire::fragment_stride(body.nb_fragments);
    std::memcpy(slot.bytes.data() + offset, data.data(), data.size());
    slot.have |= static_cast<std::uint8_t>(1U << body.fragment);
    if (slot.have != all) return {};
    slot.have = 0;  // done: the slot is free, its bytes last until it is used again
    return slot.bytes;
  }

  /// Fragments of `page` still missing, bit by bit; 0 = none is here.
  [[nodiscard]] std::uint8_t missing(Gfn page) const noexcept {
    for (const Slot& slot : set_of(page))
      if (slot.have != 0 && slot.page == page)
        return static_cast<std::uint8_t>(((1U << slot.nb_fragments) - 1) & ~unsigned{slot.have});
    return 0;
  }

  [[nodiscard]] std::size_t capacity() const noexcept { return slots_.size(); }
  [[nodiscard]] std::uint64_t evicted() const noexcept { return evicted_; }

 private:
  static constexpr std::size_t kWays = 8;
  struct Slot {
    Gfn page{};
    std::uint32_t crc32c = 0;
    std::uint64_t age = 0;
    std::uint8_t nb_fragments = 0;
    std::uint8_t have = 0;  // bit i: fragment i is here; 0 = free
    SecretBytes bytes = SecretBytes(kPageSize);
  };

  [[nodiscard]] std::size_t first_of(Gfn page) const noexcept {
    return (page.value * 0x9e3779b97f4a7c15ULL >> 32) % nb_sets_ * kWays;
  }
  [[nodiscard]] std::span<Slot> set_of(Gfn page) noexcept {
    return std::span{slots_}.subspan(first_of(page), kWays);
  }
  [[nodiscard]] std::span<const Slot> set_of(Gfn page) const noexcept {
    return std::span{slots_}.subspan(first_of(page), kWays);
  }
  Slot& find_or_evict(Gfn page) noexcept {
    const std::span<Slot> set = set_of(page);
    Slot* oldest = &set[0];
    for (Slot& slot : set) {
      if (slot.have != 0 && slot.page == page) return slot;
      if (slot.have == 0 ? oldest->have != 0 : oldest->have != 0 && slot.age < oldest->age)
        oldest = &slot;
    }
    if (oldest->have != 0) ++evicted_;
    oldest->have = 0;
    return *oldest;
  }

  std::size_t nb_sets_;
  std::vector<Slot> slots_;
  std::uint64_t clock_ = 0, evicted_ = 0;
};

}  // namespace snowfabric
