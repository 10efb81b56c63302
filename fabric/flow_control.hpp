// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

#include "fabric/base/time.hpp"

namespace snowfabric {

struct FlowConfig {
  double initial_bytes_per_s = 125e6;  ///< before any client has reported
  double floor_bytes_per_s = 1.25e6;   ///< no estimate falls below this
  double max_bytes_per_s = 12.5e9;     ///< nor rises above: the port's speed
  double slow_start_growth = 2.0;      ///< a loss-free interval before the first congestion
  double growth = 1.05;                ///< a loss-free interval after it
  double probe = 0.05;                 ///< above what a congested client received
  double back_off = 0.85;              ///< a congested interval lowers the estimate at least so far
  double tolerance = 0.01;             ///< loss above the background that is not yet congestion
  double max_background = 0.15;        ///< loss above this is never taken for noise
  std::uint32_t min_frames = 64;       ///< intervals with fewer frames say nothing
};

/// What a client received between two reports.
struct FlowInterval {
  Nanos duration{0};
  std::uint64_t rx_bytes = 0;
  std::uint32_t rx_frames = 0;
  std::uint32_t lost = 0;
  bool bucket_limited = false;  ///< the server's bucket, not low demand, set the rate
};

/// Capacity estimate of one client, in bytes per second (docs/design.md, "Flow control"; the
/// weighted mean over clients is SnowFlock's, TOCS 2011 section 4.4). Loss that stays when the rate
/// falls is background noise and is put back before it counts; what exceeds it is congestion.
class FlowEstimate {
 public:
  explicit FlowEstimate(const FlowConfig& config, double start_bytes_per_s) noexcept;

  void on_interval(const FlowInterval& interval) noexcept;

  [[nodiscard]] double bytes_per_s() const noexcept { return estimate_; }
  [[nodiscard]] double background_loss() const noexcept { return background_; }

 private:
  void learn_background(double loss, double sent) noexcept;

  const FlowConfig* config_;
  double estimate_;
  double background_ = 0;
  double congested_loss_ = 0, congested_rate_ = 0;  // at the last back-off
  bool slow_start_ = true;
};

}  // namespace snowfabric
