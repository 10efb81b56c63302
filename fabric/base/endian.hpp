// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <bit>
#include <concepts>
#include <cstdint>

namespace snowfabric {

/// An unsigned integer in network byte order, stored as bytes would lie on the wire. Reads and
/// writes convert; the type has alignment 1 only inside a packed struct.
template <std::unsigned_integral T>
class BigEndian {
 public:
  BigEndian() = default;
  constexpr BigEndian(T host) noexcept : raw_{swap(host)} {}  // NOLINT: implicit on purpose
  [[nodiscard]] constexpr T host() const noexcept { return swap(raw_); }

 private:
  static constexpr T swap(T v) noexcept {
    if constexpr (std::endian::native == std::endian::little) return std::byteswap(v);
    return v;
  }
  T raw_;
} __attribute__((packed));

using Be16 = BigEndian<std::uint16_t>;
using Be32 = BigEndian<std::uint32_t>;
using Be64 = BigEndian<std::uint64_t>;
static_assert(sizeof(Be64) == 8 && alignof(Be64) == 1);

}  // namespace snowfabric
