// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace snowfabric {

struct MacAddr {
  std::array<std::uint8_t, 6> bytes{};
  constexpr auto operator<=>(const MacAddr&) const = default;
  [[nodiscard]] constexpr bool is_multicast() const noexcept { return (bytes[0] & 1U) != 0; }
};
static_assert(sizeof(MacAddr) == 6 && alignof(MacAddr) == 1);

inline constexpr MacAddr kBroadcast{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

/// Group address of one image: locally administered multicast (first octet 0x03) followed by 40
/// mixed bits of the image id, so that NICs keep the families of two parents apart.
[[nodiscard]] constexpr MacAddr group_address(std::uint64_t image_id) noexcept {
  std::uint64_t h = image_id;  // finaliser of splitmix64: every id bit reaches every address bit
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ULL;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebULL;
  h ^= h >> 31;
  MacAddr mac{{0x03}};
  for (std::size_t i = 1; i < mac.bytes.size(); ++i) {
    mac.bytes[i] = static_cast<std::uint8_t>(h);
    h >>= 8;
  }
  return mac;
}

/// "02:db:00:00:00:01" to an address; nullopt on anything else.
[[nodiscard]] inline std::optional<MacAddr> parse_mac(std::string_view text) noexcept {
  MacAddr mac;
  if (text.size() != 17) return std::nullopt;
  const auto nibble = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (std::size_t i = 0; i < mac.bytes.size(); ++i) {
    const int high = nibble(text[3 * i]);
    const int low = nibble(text[3 * i + 1]);
    if (high < 0 || low < 0 || (i < 5 && text[3 * i + 2] != ':')) return std::nullopt;
    mac.bytes[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  return mac;
}

[[nodiscard]] inline std::string to_string(const MacAddr& mac) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : mac.bytes) {
    if (!text.empty()) text += ':';
    text += kHex[byte >> 4U];
    text += kHex[byte & 15U];
  }
  return text;
}

}  // namespace snowfabric
