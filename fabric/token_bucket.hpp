// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstddef>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// Paces frames to a rate in bytes per second with a bounded burst.
class TokenBucket {
 public:
  TokenBucket(double bytes_per_s, std::size_t burst_bytes) noexcept
      : rate_{bytes_per_s}, burst_{static_cast<double>(burst_bytes)}, tokens_{burst_} {}

  void set_rate(double bytes_per_s) noexcept { rate_ = bytes_per_s; }
  [[nodiscard]] double rate() const noexcept { return rate_; }
  void set_burst(std::size_t burst_bytes) noexcept { burst_ = static_cast<double>(burst_bytes); }

  void refill(Nanos now) noexcept {
    if (now == last_) return;  // frames of one burst are sent at one time
    if (last_ != kNever) {
      const double grant = rate_ * std::chrono::duration<double>(now - last_).count();
      totals_.granted += grant;
      tokens_ = std::min(burst_, tokens_ + grant);
    }
    last_ = now;
  }
  /// Takes the tokens if any are left; the balance may go negative by less than one frame.
  [[nodiscard]] bool take(std::size_t bytes) noexcept {
    if (!is_ready()) return false;
    charge(bytes);
    return true;
  }
  [[nodiscard]] bool is_ready() const noexcept { return tokens_ > 0; }
  /// Takes the tokens, whatever the balance is.
  void charge(std::size_t bytes) noexcept {
    tokens_ -= static_cast<double>(bytes);
    totals_.taken += static_cast<double>(bytes);
  }
  /// Bytes allowed and bytes taken since the start.
  struct Totals {
    double granted = 0, taken = 0;
  };
  [[nodiscard]] const Totals& totals() const noexcept { return totals_; }
  /// Whether the bucket was the limit since its totals were `then`, and not what there was to send.
  [[nodiscard]] bool was_limit_since(const Totals& then) const noexcept {
    return totals_.taken - then.taken >= kLimitedShare * (totals_.granted - then.granted);
  }
  /// Earliest time at which take() succeeds, seen from the last refill.
  [[nodiscard]] Nanos ready_at() const noexcept {
    if (is_ready() || last_ == kNever) return last_;
    return last_ + Nanos{static_cast<std::int64_t>(-tokens_ / rate_ * 1e9) + 1};
  }

 private:
  static constexpr double kLimitedShare = 0.75;

  double rate_, burst_, tokens_;
  Totals totals_;
  Nanos last_ = kNever;
};

}  // namespace snowfabric
