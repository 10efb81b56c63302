// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace snowfabric {

/// A whole number in base 10 or 16; base 0: 10, or 16 behind 0x.
[[nodiscard]] inline std::optional<std::uint64_t> parse_number(std::string_view text, int base) {
  if (base == 0) {
    const bool hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    return hexadecimal ? parse_number(text.substr(2), 16) : parse_number(text, 10);
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace snowfabric
