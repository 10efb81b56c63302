// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>

namespace snowfabric {

/// Monotonic time with an arbitrary epoch. Engines are told it and never read a clock.
using Nanos = std::chrono::nanoseconds;

/// "Before anything": far enough back that `now - kNever` exceeds every window, and no overflow.
inline constexpr Nanos kNever = Nanos::min() / 4;

}  // namespace snowfabric
