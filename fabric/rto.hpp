// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>

#include "fabric/base/time.hpp"

namespace snowfabric {

struct RtoConfig {
  Nanos initial{std::chrono::milliseconds{20}};
  Nanos min{std::chrono::milliseconds{1}};
  Nanos max{std::chrono::milliseconds{500}};
};

/// Retransmission time-out of RFC 6298 with bounds for a LAN instead of its 1 s minimum. That is
/// also its clock granularity G, the least margin above the mean: pages that lie in a queue all
/// take the same time, and a host that shares its CPUs looks at what came some milliseconds late.
/// The caller keeps Karn's rule: no sample from a request that was sent more than once.
class RtoEstimator {
 public:
  explicit RtoEstimator(const RtoConfig& config) noexcept : config_{config} {}

  void sample(Nanos rtt) noexcept {
    if (srtt_ == Nanos{0}) {  // section 2.2
      srtt_ = rtt;
      rttvar_ = rtt / 2;
      return;
    }
    const Nanos error = srtt_ > rtt ? srtt_ - rtt : rtt - srtt_;
    rttvar_ += (error - rttvar_) / 4;  // section 2.3
    srtt_ += (rtt - srtt_) / 8;
  }

  /// Time-out of the next transmission after `attempts` unanswered ones: doubled each time, capped.
  [[nodiscard]] Nanos rto(unsigned attempts) const noexcept {
    const Nanos base =
        srtt_ == Nanos{0} ? config_.initial : srtt_ + std::max(config_.min, 4 * rttvar_);
    const Nanos first = std::clamp(base, config_.min, config_.max);
    return std::min(first * (std::int64_t{1} << std::min(attempts, 16U)), config_.max);
  }

  [[nodiscard]] Nanos srtt() const noexcept { return srtt_; }  ///< 0 = no sample yet
  [[nodiscard]] Nanos rttvar() const noexcept { return rttvar_; }

 private:
  RtoConfig config_;
  Nanos srtt_{0}, rttvar_{0};
};

}  // namespace snowfabric
