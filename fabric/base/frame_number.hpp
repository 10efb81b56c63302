// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <compare>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace snowfabric {

inline constexpr std::size_t kPageSize = 4096;

/// Index of a 4 KiB frame in one address space; a Gfn does not convert to another space's number.
/// Source: the definitions at the top of xen/include/xen/mm.h.
template <class Space>
struct FrameNumber {
  std::uint64_t value{};
  constexpr auto operator<=>(const FrameNumber&) const = default;
};

using Gfn = FrameNumber<struct GuestSpace>;  ///< page of the frozen image: our key on the wire

/// A run of pages [first, first + nb_pages).
struct PageRange {
  Gfn first;
  std::uint32_t nb_pages{};
  constexpr bool operator==(const PageRange&) const = default;
};

static_assert(sizeof(Gfn) == sizeof(std::uint64_t) && std::is_trivially_copyable_v<Gfn>);

}  // namespace snowfabric
