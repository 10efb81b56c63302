// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>

namespace snowfabric {

struct EndGameConfig {
  double enter = 0.995;  ///< begin when this share of the image went out to the present members
  double leave = 0.95;   ///< end when it falls below (members joined late)
};

/// Whether answers go by unicast because most pages have gone out by multicast. Coverage is the
/// share of the image that the average member had the chance to receive: members that join late
/// lower it, so a new cohort is served by multicast again. Paper: TOCS 2011 section 4.4.
class EndGame {
 public:
  EndGame(const EndGameConfig& config, std::uint64_t nb_pages) noexcept
      : config_{config},
        nb_pages_{static_cast<double>(std::max<std::uint64_t>(nb_pages, 1))},
        update_every_{nb_pages / 1024 + 1} {}

  /// A page went out by multicast for the first time since the newest member joined.
  /// @return whether the coverage moved enough to be worth an update()
  [[nodiscard]] bool on_new_multicast() noexcept { return ++multicast_ % update_every_ == 0; }
  /// Where a member that joins now begins to count.
  [[nodiscard]] std::uint64_t mark() const noexcept { return multicast_; }
  /// Share of the image that went out since the mark, at most 1.
  [[nodiscard]] double covered_since(std::uint64_t mark) const noexcept {
    return std::min(static_cast<double>(multicast_ - mark) / nb_pages_, 1.0);
  }

  /// Decides anew, with hysteresis, from the mean coverage of the members.
  void update(double coverage) noexcept {
    active_ = coverage >= (active_ ? config_.leave : config_.enter);
  }
  [[nodiscard]] bool active() const noexcept { return active_; }

 private:
  EndGameConfig config_;
  double nb_pages_;
  std::uint64_t update_every_;
  std::uint64_t multicast_ = 0;
  bool active_ = false;
};

}  // namespace snowfabric
