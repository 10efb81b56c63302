// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <optional>

namespace snowfabric::bench {

/// Looks for the highest rate at which no receiver lacks more than a share of what was sent, by
/// halving the interval that it lies in (RFC 2544, section 26.1). Rates are in whatever unit the
/// caller has.
class RateSearch {
 public:
  static constexpr double kPrecision = 0.02;   ///< of the rate that is looked for
  static constexpr unsigned kMostTrials = 12;  ///< down to a 2000th of the first

  /// @param most  to begin with
  RateSearch(double most, double tolerance) noexcept
      : high_{most}, offered_{most}, tolerance_{tolerance} {}

  /// The rate to try next. @return nullopt: the search is over
  [[nodiscard]] std::optional<double> next() const noexcept {
    if (over_) return std::nullopt;
    return offered_;
  }
  /// @param sent  the rate that came of it: a port may take less than is offered
  /// @param loss  share that the worst receiver lacks
  /// @return whether it is the best so far
  bool note(double sent, double loss) noexcept {
    const bool passed = loss <= tolerance_, better = passed && sent > low_;
    if (better) low_ = sent;
    // The first is more than the port takes; later a sender that fell short may have been
    // disturbed, which says nothing of the rates above.
    if (nb_trials_ == 0)
      high_ = std::min(high_, sent);
    else if (!passed)
      high_ = offered_;
    over_ = ++nb_trials_ == kMostTrials || high_ - low_ <= high_ * kPrecision;
    offered_ = (low_ + high_) / 2;
    return better;
  }
  [[nodiscard]] double best() const noexcept { return low_; }  ///< 0: none passed
  [[nodiscard]] unsigned nb_trials() const noexcept { return nb_trials_; }

 private:
  double low_ = 0, high_, offered_, tolerance_;
  unsigned nb_trials_ = 0;
  bool over_ = false;
};

}  // namespace snowfabric::bench
