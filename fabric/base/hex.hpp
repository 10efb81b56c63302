// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

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

/// Fills `out`. @return false: `text` is not two hexadecimal digits for each of its bytes
[[nodiscard]] inline bool from_hex(std::string_view text, std::span<std::byte> out) {
  if (text.size() != 2 * out.size()) return false;
  const char* digits = text.data();
  for (std::byte& b : out) {
    std::uint8_t value = 0;
    const auto [end, error] = std::from_chars(digits, digits + 2, value, 16);
    if (error != std::errc{} || end != digits + 2) return false;
    b = std::byte{value};
    digits = end;
  }
  return true;
}

}  // namespace snowfabric
