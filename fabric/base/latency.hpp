// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "fabric/base/counter.hpp"
#include "fabric/base/time.hpp"

namespace snowfabric {

/// How long something took, in buckets of a quarter octave: a percentile is exact to 25 %. One
/// writer, any readers.
class LatencyHistogram {
 public:
  void add(Nanos took) noexcept { buckets_[bucket_of(took)].add(1); }

  /// The bound that `share` of all stayed below; 0 if there was none.
  /// @param share  0 .. 1
  [[nodiscard]] Nanos percentile(double share) const noexcept {
    std::uint64_t total = 0;
    for (const Counter& bucket : buckets_) total += bucket.read();
    if (total == 0) return Nanos{0};
    auto left = static_cast<std::uint64_t>(share * static_cast<double>(total - 1));
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      const std::uint64_t nb = buckets_[i].read();
      if (left < nb) return upper_bound_of(i);
      left -= nb;
    }
    return upper_bound_of(buckets_.size() - 1);  // a reader that was overtaken by the writer
  }

 private:
  static constexpr std::size_t kBuckets = 40 * 4;  // up to 18 minutes

  static std::size_t bucket_of(Nanos took) noexcept {
    const auto ns = static_cast<std::uint64_t>(std::max<Nanos::rep>(took.count(), 4));
    const auto octave = static_cast<std::size_t>(std::bit_width(ns)) - 1;
    return std::min(octave * 4 + (ns >> (octave - 2) & 3U), kBuckets - 1);
  }
  static Nanos upper_bound_of(std::size_t bucket) noexcept {
    const std::size_t octave = bucket / 4;
    return Nanos{static_cast<Nanos::rep>((5 + bucket % 4) << octave >> 2U)};
  }

  std::array<Counter, kBuckets> buckets_{};
};

}  // namespace snowfabric
