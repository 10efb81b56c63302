// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>

#include "fabric/stats.hpp"

namespace snowfabric {

/// Counters of the worker itself; the engines have theirs. Names in docs/telemetry.md.
struct alignas(kCacheLine) ServerPortStats {
  Counter rx_frames, rx_foreign_ethertype, tx_frames, tx_bytes, tx_back_pressure, tx_no_mbuf;
  Counter rx_injected_loss;
};
inline constexpr std::array kServerPortCounters{
    CounterInfo<ServerPortStats>{"rx_frames", &ServerPortStats::rx_frames,
                                 "frames of our EtherType received"},
    CounterInfo<ServerPortStats>{"rx_foreign_ethertype", &ServerPortStats::rx_foreign_ethertype,
                                 "frames of other protocols or from no station, ignored"},
    CounterInfo<ServerPortStats>{"tx_frames", &ServerPortStats::tx_frames,
                                 "frames given to the port"},
    CounterInfo<ServerPortStats>{"tx_bytes", &ServerPortStats::tx_bytes,
                                 "bytes of these, Ethernet headers included, no FCS"},
    CounterInfo<ServerPortStats>{"tx_back_pressure", &ServerPortStats::tx_back_pressure,
                                 "flushes that found the TX ring full"},
    CounterInfo<ServerPortStats>{"tx_no_mbuf", &ServerPortStats::tx_no_mbuf,
                                 "turns that could not send for want of mbufs"},
    CounterInfo<ServerPortStats>{"rx_injected_loss", &ServerPortStats::rx_injected_loss,
                                 "received frames lost on purpose (--rx-loss)"},
};
static_assert(kServerPortCounters.size() * sizeof(Counter) <= sizeof(ServerPortStats) &&
              sizeof(ServerPortStats) - kServerPortCounters.size() * sizeof(Counter) < kCacheLine);

}  // namespace snowfabric
