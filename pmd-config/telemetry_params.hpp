// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>

#include "fabric/base/parse_number.hpp"

namespace snowfabric {

/// What follows the comma in a telemetry request: any text, of whoever may enter the socket's
/// folder. docs/telemetry.md says what is accepted.
/// @{

/// Of /memtap/guest: decimal, within the numbers that guests get.
[[nodiscard]] inline std::optional<std::uint32_t> guest_id_of(std::string_view param) {
  const auto number = parse_number(param, 10);
  if (!number || *number > std::numeric_limits<std::uint32_t>::max()) return std::nullopt;
  return static_cast<std::uint32_t>(*number);
}

/// Of /memserver/image: as /memserver/images writes it.
[[nodiscard]] inline std::optional<std::uint64_t> image_id_of(std::string_view param) {
  constexpr std::size_t kDigits = 16;
  if (param.size() != kDigits || param.find_first_not_of("0123456789abcdef") != param.npos)
    return std::nullopt;
  return parse_number(param, 16);
}
/// @}

}  // namespace snowfabric
