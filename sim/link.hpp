// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "fabric/base/prng.hpp"
#include "fabric/base/time.hpp"
#include "fabric/wire.hpp"

namespace snowfabric::sim {

/// One direction of a cable: a queue, a rate, and what goes wrong on it.
struct LinkConfig {
  Nanos delay{std::chrono::microseconds{10}};
  Nanos jitter{0};  ///< added uniformly; more than a frame gap reorders
  double bytes_per_s = 1.25e9;
  std::size_t queue_bytes = std::size_t{4} << 20U;
  /// Sent at once after a pause, and at the rate from then on, as a token bucket shapes a virtual
  /// network. 0: a wire, on which each frame takes its time.
  std::size_t burst_bytes = 0;
  double loss = 0, duplicate = 0, corrupt = 0;  ///< independent per frame
  /// Gilbert's model of bursts: per frame, how likely one begins and ends; within, all are lost.
  double burst_begins = 0, burst_ends = 1;
};

/// Every frame offered is carried, or lost for one of these reasons; a duplicate is carried twice.
struct LinkCounters {
  std::uint64_t offered = 0, carried = 0, duplicated = 0, corrupted = 0;
  std::uint64_t lost = 0, lost_in_bursts = 0, cut_off = 0, queue_full = 0, dropped_by_script = 0;
  [[nodiscard]] std::uint64_t nb_lost() const {
    return lost + lost_in_bursts + cut_off + queue_full + dropped_by_script;
  }
};

class Link {
 public:
  explicit Link(const LinkConfig& start) : config{start} {}

  /// What becomes of a frame that is sent now.
  /// @param bytes    all of it
  /// @param arrives  called with each time at which a copy arrives, and whether a bit of it flipped
  template <class Arrives>
  void carry(std::span<const std::byte> bytes, Nanos now, Prng& prng, Arrives&& arrives) {
    ++counters.offered;
    const Nanos start = std::max(now, free_at_);
    const Nanos burst = time_on_wire(config.burst_bytes);
    if (start - now > time_on_wire(config.queue_bytes) + burst) {
      ++counters.queue_full;
      return;
    }
    free_at_ = start + time_on_wire(bytes.size());
    const Nanos sent = std::max(now, free_at_ - burst);
    if (is_lost(bytes, prng)) return;
    const bool twice = prng.uniform() < config.duplicate;
    counters.duplicated += twice ? 1 : 0;
    for (int copy = 0; copy < (twice ? 2 : 1); ++copy) {
      const bool corrupted = prng.uniform() < config.corrupt;
      counters.corrupted += corrupted ? 1 : 0;
      ++counters.carried;
      arrives(sent + config.delay + prng.below(config.jitter), corrupted);
    }
  }
  [[nodiscard]] Nanos time_on_wire(std::size_t nb_bytes) const {
    return Nanos{
        static_cast<std::int64_t>(static_cast<double>(nb_bytes) / config.bytes_per_s * 1e9)};
  }

  /// When what was sent would be on a wire.
  [[nodiscard]] Nanos free_at() const noexcept { return free_at_; }

  LinkConfig config;
  bool down = false;
  std::function<bool(const wire::Frame&)> drop{};  ///< scripted: true = this frame is lost
  LinkCounters counters;

 private:
  bool is_lost(std::span<const std::byte> bytes, Prng& prng);

  Nanos free_at_{0};
  bool in_burst_ = false;
};

}  // namespace snowfabric::sim
