// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// splitmix64 (Steele, Lea and Flood, OOPSLA 2014): 8 bytes of state, for jitter and injected
/// faults; not for secrets. Same seed, same sequence, on every machine.
class Prng {
 public:
  explicit constexpr Prng(std::uint64_t seed) noexcept : state_{seed} {}
  constexpr std::uint64_t next() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, 1).
  constexpr double uniform() noexcept { return static_cast<double>(next() >> 11U) * 0x1p-53; }
  /// Likewise, in [0, most).
  constexpr Nanos below(Nanos most) noexcept {
    return Nanos{static_cast<std::int64_t>(uniform() * static_cast<double>(most.count()))};
  }

 private:
  std::uint64_t state_;
};

}  // namespace snowfabric
