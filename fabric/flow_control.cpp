// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/flow_control.hpp"

#include <algorithm>
#include <cmath>

namespace snowfabric {

FlowEstimate::FlowEstimate(const FlowConfig& config, double start_bytes_per_s) noexcept
    : config_{&config}, estimate_{start_bytes_per_s} {}

void FlowEstimate::on_interval(const FlowInterval& interval) noexcept {
  const double frames = static_cast<double>(interval.rx_frames) + interval.lost;
  const bool limited = interval.bucket_limited || interval.push_limited;
  if (!limited || frames < config_->min_frames || interval.duration <= Nanos{0}) return;
  const double loss = interval.lost / frames;
  const double received = static_cast<double>(interval.rx_bytes) /
                          std::chrono::duration<double>(interval.duration).count();
  const double sent = loss < 1 ? received / (1 - loss) : congested_rate_;
  learn_background(loss, sent);
  const double through = received / (1 - background_);
  // Two standard deviations of a binomial sample of the background are not congestion either.
  const double noise = 2 * std::sqrt(background_ * (1 - background_) / frames);
  const bool is_lossy = loss > background_ + config_->tolerance + noise;
  if (!is_lossy) {
    const double growth = slow_start_ ? config_->slow_start_growth : config_->growth;
    estimate_ = std::max(estimate_, through * growth);
  } else {
    slow_start_ = false;
    congested_loss_ = loss;
    congested_rate_ = sent;
    const double held = std::min(through * (1 + config_->probe), sent * config_->back_off);
    // Where less than the rate was sent, the rate comes down to that only if the loss lasts.
    estimate_ = interval.bucket_limited || lossy_ ? held : std::max(held, estimate_ / 2);
  }
  lossy_ = is_lossy;
  estimate_ = std::min(std::max(estimate_, config_->floor_bytes_per_s), config_->max_bytes_per_s);
}

void FlowEstimate::learn_background(double loss, double sent) noexcept {
  if (loss < background_) {
    background_ += (loss - background_) / 16;
    return;
  }
  const bool rate_fell = sent <= congested_rate_ * 0.95;
  const bool loss_stayed = loss >= congested_loss_ * 0.5;
  if (congested_loss_ == 0 || !rate_fell || !loss_stayed || loss > config_->max_background) return;
  background_ = (loss + congested_loss_) / 2;  // two samples of one noise
  congested_loss_ = 0;
  slow_start_ = true;  // the back-off was a false alarm
}

}  // namespace snowfabric
