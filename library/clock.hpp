// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// What engines are told the time by, where there is no EAL. Any thread.
[[nodiscard]] inline Nanos monotonic_now() noexcept {
  return std::chrono::steady_clock::now().time_since_epoch();
}

}  // namespace snowfabric
