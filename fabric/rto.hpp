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
/// Karn's rule: a request that was sent more than once gives no sample, and what it had to back off
/// holds for those that follow, until one of them does (section 5). Without that a queue longer
/// than the time-out would have every page asked for twice, and no sample would ever come.
class RtoEstimator {
 public:
  explicit RtoEstimator(const RtoConfig& config) noexcept : config_{config} {}

  /// An answer to a request that was sent once.
  void sample(Nanos rtt) noexcept {
    backed_off_ = 0;
    if (srtt_ == Nanos{0}) {  // section 2.2
      srtt_ = rtt;
      rttvar_ = rtt / 2;
      return;
    }
    const Nanos error = srtt_ > rtt ? srtt_ - rtt : rtt - srtt_;
    rttvar_ += (error - rttvar_) / 4;  // section 2.3
    srtt_ += (rtt - srtt_) / 8;
  }

  /// An answer to a request that was sent again `retries` times.
  void answered_late(unsigned retries) noexcept {
    backed_off_ = std::max(backed_off_, std::min(retries, kMostKept));
  }

  /// Time-out of the next transmission after `attempts` unanswered ones: doubled each time, capped.
  [[nodiscard]] Nanos rto(unsigned attempts) const noexcept {
    const Nanos base =
        srtt_ == Nanos{0} ? config_.initial : srtt_ + std::max(config_.min, 4 * rttvar_);
    const Nanos first = std::clamp(base, config_.min, config_.max);
    return std::min(first * (std::int64_t{1} << std::min(attempts + backed_off_, 16U)),
                    config_.max);
  }

  [[nodiscard]] Nanos srtt() const noexcept { return srtt_; }  ///< 0 = no sample yet
  [[nodiscard]] Nanos rttvar() const noexcept { return rttvar_; }

 private:
  /// 8 times the first time-out. After an outage, the first loss would else cost `max` at once.
  static constexpr unsigned kMostKept = 3;

  RtoConfig config_;
  unsigned backed_off_ = 0;
  Nanos srtt_{0}, rttvar_{0};
};

}  // namespace snowfabric
