// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>

#include "fabric/stats.hpp"

namespace snowfabric {

/// Counters of the worker itself; engine and host have theirs. Names in docs/telemetry.md.
struct alignas(kCacheLine) ClientPortStats {
  Counter rx_frames, rx_bytes, rx_foreign_ethertype, tx_frames, tx_bytes, tx_back_pressure;
  Counter tx_no_mbuf, rx_injected_loss;
};
inline constexpr std::array kClientPortCounters{
    CounterInfo<ClientPortStats>{"rx_frames", &ClientPortStats::rx_frames,
                                 "frames of our EtherType received"},
    CounterInfo<ClientPortStats>{"rx_bytes", &ClientPortStats::rx_bytes, "bytes of these"},
    CounterInfo<ClientPortStats>{"rx_foreign_ethertype", &ClientPortStats::rx_foreign_ethertype,
                                 "frames of other protocols or from no station, ignored"},
    CounterInfo<ClientPortStats>{"tx_frames", &ClientPortStats::tx_frames,
                                 "frames given to the port"},
    CounterInfo<ClientPortStats>{"tx_bytes", &ClientPortStats::tx_bytes, "bytes of these"},
    CounterInfo<ClientPortStats>{"tx_back_pressure", &ClientPortStats::tx_back_pressure,
                                 "flushes that found the TX ring full"},
    CounterInfo<ClientPortStats>{"tx_no_mbuf", &ClientPortStats::tx_no_mbuf,
                                 "turns that could not send for want of mbufs"},
    CounterInfo<ClientPortStats>{"rx_injected_loss", &ClientPortStats::rx_injected_loss,
                                 "received frames lost on purpose (--rx-loss)"},
};
static_assert(kClientPortCounters.size() * sizeof(Counter) <= sizeof(ClientPortStats) &&
              sizeof(ClientPortStats) - kClientPortCounters.size() * sizeof(Counter) < kCacheLine);

}  // namespace snowfabric
