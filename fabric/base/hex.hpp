// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace snowfabric {

/// Two lower-case digits a byte.
[[nodiscard]] inline std::string to_hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte b : bytes) {
    text += kDigits[std::to_integer<std::size_t>(b >> 4U)];
    text += kDigits[std::to_integer<std::size_t>(b & std::byte{15})];
  }
  return text;
}

/// @return nullopt: `text` is not 2 * N hexadecimal digits
template <std::size_t N>
[[nodiscard]] std::optional<std::array<std::byte, N>> from_hex(std::string_view text) {
  if (text.size() != 2 * N) return std::nullopt;
  std::array<std::byte, N> bytes;
  for (std::size_t i = 0; i < N; ++i) {
    std::uint8_t value = 0;
    const char* const digits = text.data() + 2 * i;
    const auto [end, error] = std::from_chars(digits, digits + 2, value, 16);
    if (error != std::errc{} || end != digits + 2) return std::nullopt;
    bytes[i] = std::byte{value};
  }
  return bytes;
}

}  // namespace snowfabric
