// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>

namespace snowfabric {

/// Monotonic time with an arbitrary epoch. Engines are told it and never read a clock.
using Nanos = std::chrono::nanoseconds;

/// Whole microseconds, for the wire and for counters.
[[nodiscard]] inline std::uint64_t to_micros(Nanos t) noexcept {
  return static_cast<std::uint64_t>(t.count()) / 1000;
}

/// "Before anything": far enough back that `now - kNever` exceeds every window, and no overflow.
inline constexpr Nanos kNever = Nanos::min() / 4;

}  // namespace snowfabric
