// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace snowfabric::sim {

/// What a frame says, in a line: "page 17 (fragment 2 of 3)", "asks for 4 to 11 (prefetch), 80".
/// @param frame  Ethernet header included; one that cannot be parsed is called so
[[nodiscard]] std::string to_string(std::span<const std::byte> frame);

}  // namespace snowfabric::sim
