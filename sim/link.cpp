// SPDX-License-Identifier: BSD-3-Clause
#include "sim/link.hpp"

namespace snowfabric::sim {

/// On the wire: a frame that is lost takes its time there.
bool Link::is_lost(std::span<const std::byte> bytes, Prng& prng) {
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
  wire::Frame parsed;
  if (!drop || wire::parse(bytes.subspan(sizeof(wire::EthHdr)), parsed) != wire::Drop::kNone)
    return false;
  const bool dropped = drop(parsed);
  counters.dropped_by_script += dropped ? 1 : 0;
  return dropped;
}

}  // namespace snowfabric::sim
