// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// How the group's rate follows from what its members can take:
/// docs/adr/0015-the-rate-stays-a-weighted-mean.md.
enum class FlowRule : std::uint8_t {
  kMean,    ///< of all, by their recent demand
  kEqual,   ///< the mean of all, each with the same weight
  kMin,     ///< the slowest member's
  kMax,     ///< the fastest member's
  kTagged,  ///< the slowest's of the tagged members; while there are none as kMean
};

struct FlowConfig {
  FlowRule rule = FlowRule::kMean;
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
  bool push_limited = false;    ///< the limit of what nobody asked for did, which may be far below
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

  void tag() noexcept { tagged_ = true; }
  [[nodiscard]] bool is_tagged() const noexcept { return tagged_; }

 private:
  void learn_background(double loss, double sent) noexcept;

  const FlowConfig* config_;
  double estimate_;
  double background_ = 0;
  double congested_loss_ = 0, congested_rate_ = 0;  // at the last back-off
  bool slow_start_ = true, lossy_ = false;          // lossy_: the interval before was
  bool tagged_ = false;                             // its member counts for FlowRule::kTagged
};

/// The group's rate, in bytes per second, from what its members can take.
class GroupRate {
 public:
  void add(const FlowEstimate& member, double demand) noexcept {
    const double bytes_per_s = member.bytes_per_s();
    ++nb_members_;
    sum_ += bytes_per_s;
    weighted_ += demand * bytes_per_s;
    demand_ += demand;
    least_ = std::min(least_, bytes_per_s);
    most_ = std::max(most_, bytes_per_s);
    if (member.is_tagged()) least_tagged_ = std::min(least_tagged_, bytes_per_s);
  }
  /// Some member asked for something of late.
  [[nodiscard]] bool is_wanted() const noexcept { return demand_ >= 1; }
  /// @pre somebody was added
  [[nodiscard]] double by(FlowRule rule) const noexcept {
    if (rule == FlowRule::kMin) return least_;
    if (rule == FlowRule::kMax) return most_;
    if (rule == FlowRule::kTagged && least_tagged_ < kNone) return least_tagged_;
    const bool alike = rule == FlowRule::kEqual || !is_wanted();  // also if nobody asks
    return alike ? sum_ / nb_members_ : weighted_ / demand_;
  }

 private:
  static constexpr double kNone = std::numeric_limits<double>::max();
  double nb_members_ = 0, sum_ = 0, weighted_ = 0, demand_ = 0;
  double least_ = kNone, least_tagged_ = kNone, most_ = 0;
};

}  // namespace snowfabric
