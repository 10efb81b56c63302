// SPDX-License-Identifier: BSD-3-Clause
#include "sim/link.hpp"

namespace snowfabric::sim {

bool Link::is_lost(const wire::Frame* parsed, Prng& prng) {
  if (down) {
    ++counters.cut_off;
    return true;
  }
  in_burst_ =
      in_burst_ ? prng.uniform() >= config.burst_ends : prng.uniform() < config.burst_begins;
  if (in_burst_) {
    ++counters.lost_in_bursts;
    return true;
  }
  if (prng.uniform() < config.loss) {
    ++counters.lost;
    return true;
  }
  if (drop && parsed != nullptr && drop(*parsed)) {
    ++counters.dropped_by_script;
    return true;
  }
  return false;
}

}  // namespace snowfabric::sim
