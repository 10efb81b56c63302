// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_cycles.h>

#include <atomic>
#include <span>

#include "fabric/base/time.hpp"
#include "fabric/idle.hpp"

namespace snowfabric {

/// Monotonic time from the TSC: one multiplication, no system call.
class TscClock {
 public:
  TscClock() noexcept : nanos_per_cycle_{1e9 / static_cast<double>(rte_get_tsc_hz())} {}
  [[nodiscard]] Nanos now() const noexcept {
    const auto cycles = static_cast<double>(rte_rdtsc() - start_);
    return Nanos{static_cast<std::int64_t>(cycles * nanos_per_cycle_)};
  }

 private:
  double nanos_per_cycle_;
  std::uint64_t start_ = rte_rdtsc();
};

/// Runs a worker on the calling lcore until `stop`. The clock is read once a turn and passed down.
/// @param turn      unsigned(Nanos now): does what there is to do, returns how much it was
/// @param deadline  Nanos(Nanos now): when the next turn is due if nothing arrives
/// @param sleeping  void(bool): around a sleep, to arm and disarm RX interrupts
template <class Turn, class Deadline, class Sleeping>
void run_lcore(Turn&& turn, Deadline&& deadline, Sleeping&& sleeping, std::span<const int> wait_fds,
               Idle& idle, const std::atomic<bool>& stop) noexcept {
  const TscClock clock;
  while (!stop.load(std::memory_order_relaxed)) {
    const Nanos now = clock.now();
    if (turn(now) != 0) {
      idle.hit();
      continue;
    }
    const bool sleeps = idle.about_to_sleep();
    if (sleeps) sleeping(true);
    idle.miss(wait_fds, sleeps ? deadline(now) - now : Idle::kLongestSleep);
    if (sleeps) sleeping(false);
  }
}

}  // namespace snowfabric
