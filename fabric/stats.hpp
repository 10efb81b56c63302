// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <string_view>

#include "fabric/base/counter.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

inline constexpr std::size_t kCacheLine = 64;
inline constexpr std::size_t kNbDrops = static_cast<std::size_t>(wire::Drop::kCount);

/// Dropped frames by reason; published as `rx_drop_<reason>`. Index 0 (kNone) stays 0.
struct DropCounters {
  std::array<Counter, kNbDrops> by_reason;
  void count(wire::Drop why) noexcept { by_reason[static_cast<std::size_t>(why)].add(1); }
};

/// One published counter or gauge. Names are API: docs/telemetry.md lists them.
template <class Stats>
struct CounterInfo {
  std::string_view name;
  Counter Stats::* member;
  std::string_view help;
};

/// Written by the engine's lcore, read by telemetry. Gauges are marked "now".
struct alignas(kCacheLine) ServerStats {
  Counter rx_requests, rx_hellos, joins, leaves, clients_timed_out, clients_refused, clients;
  Counter wants, wants_retried, lockstep_hits, wants_merged, wants_overflow, wants_absent;
  Counter tx_pages_multicast, tx_pages_unicast, tx_pages_pushed, tx_pages_partial, tx_zero_pages;
  Counter tx_pairs, pages_sent_once, end_game, end_game_entered, control_overflow;
  Counter rate_bytes_per_s, window_us;
};
inline constexpr std::array kServerCounters{
    CounterInfo<ServerStats>{"rx_requests", &ServerStats::rx_requests, "REQUEST frames accepted"},
    CounterInfo<ServerStats>{"rx_hellos", &ServerStats::rx_hellos, "HELLO frames accepted"},
    CounterInfo<ServerStats>{"joins", &ServerStats::joins, "clients that joined"},
    CounterInfo<ServerStats>{"leaves", &ServerStats::leaves, "clients that said BYE"},
    CounterInfo<ServerStats>{"clients_timed_out", &ServerStats::clients_timed_out,
                             "clients forgotten because they fell silent"},
    CounterInfo<ServerStats>{"clients_refused", &ServerStats::clients_refused,
                             "joins refused: table full"},
    CounterInfo<ServerStats>{"clients", &ServerStats::clients, "clients now"},
    CounterInfo<ServerStats>{"wants", &ServerStats::wants, "pages asked for"},
    CounterInfo<ServerStats>{"wants_retried", &ServerStats::wants_retried,
                             "of these, with the retry flag"},
    CounterInfo<ServerStats>{"lockstep_hits", &ServerStats::lockstep_hits,
                             "wants ignored: the answer was already on the wire"},
    CounterInfo<ServerStats>{"wants_merged", &ServerStats::wants_merged,
                             "wants that joined a page already queued"},
    CounterInfo<ServerStats>{"wants_overflow", &ServerStats::wants_overflow,
                             "wants dropped, so many pages were queued"},
    CounterInfo<ServerStats>{"wants_absent", &ServerStats::wants_absent, "wants outside the image"},
    CounterInfo<ServerStats>{"tx_pages_multicast", &ServerStats::tx_pages_multicast,
                             "pages answered by multicast, repeats included"},
    CounterInfo<ServerStats>{
        "tx_pages_unicast", &ServerStats::tx_pages_unicast,
        "pages answered by unicast: in the end game, and fragments one client lost"},
    CounterInfo<ServerStats>{"tx_pages_pushed", &ServerStats::tx_pages_pushed,
                             "multicast pages nobody had asked for yet"},
    CounterInfo<ServerStats>{"tx_pages_partial", &ServerStats::tx_pages_partial,
                             "answers with only the missing fragments"},
    CounterInfo<ServerStats>{"tx_zero_pages", &ServerStats::tx_zero_pages,
                             "pages named in ZEROS frames"},
    CounterInfo<ServerStats>{"tx_pairs", &ServerStats::tx_pairs, "frames with two pages"},
    CounterInfo<ServerStats>{"pages_sent_once", &ServerStats::pages_sent_once,
                             "distinct non-zero pages that went out since the start"},
    CounterInfo<ServerStats>{"end_game", &ServerStats::end_game, "1 while in the end game now"},
    CounterInfo<ServerStats>{"end_game_entered", &ServerStats::end_game_entered,
                             "times the end game began"},
    CounterInfo<ServerStats>{"control_overflow", &ServerStats::control_overflow,
                             "WELCOME, ABSENT or BYE answers dropped: queue full"},
    CounterInfo<ServerStats>{"rate_bytes_per_s", &ServerStats::rate_bytes_per_s,
                             "rate the flow control allows now"},
    CounterInfo<ServerStats>{"window_us", &ServerStats::window_us, "lockstep window now"},
};
static_assert(kServerCounters.size() * sizeof(Counter) <= sizeof(ServerStats) &&
              sizeof(ServerStats) - kServerCounters.size() * sizeof(Counter) < kCacheLine);

struct alignas(kCacheLine) ClientStats {
  Counter rx_pages, rx_zero_pages, rx_duplicates, rx_fragments, rx_lost, rx_unasked;
  Counter asked_demand, asked_prefetch, tx_requests, tx_hellos, retries, prefetch_given_up;
  Counter absent_pages, partial_evicted, overdue_pages, server_restarts, server_dead, refusals;
  Counter sibling_requests, rx_repairs, tx_repairs, repairs_left, inflight, srtt_us;
};
inline constexpr std::array kClientCounters{
    CounterInfo<ClientStats>{"rx_pages", &ClientStats::rx_pages, "whole pages received and needed"},
    CounterInfo<ClientStats>{"rx_zero_pages", &ClientStats::rx_zero_pages,
                             "pages named in ZEROS frames"},
    CounterInfo<ClientStats>{"rx_duplicates", &ClientStats::rx_duplicates,
                             "page frames dropped: every clone had the page"},
    CounterInfo<ClientStats>{"rx_fragments", &ClientStats::rx_fragments,
                             "frames that carried a part of a page"},
    CounterInfo<ClientStats>{"rx_lost", &ClientStats::rx_lost,
                             "multicast frames missed, by the group sequence"},
    CounterInfo<ClientStats>{"rx_unasked", &ClientStats::rx_unasked,
                             "pages received that this host had not asked for"},
    CounterInfo<ClientStats>{"asked_demand", &ClientStats::asked_demand, "demand pages asked for"},
    CounterInfo<ClientStats>{"asked_prefetch", &ClientStats::asked_prefetch,
                             "prefetch pages asked for"},
    CounterInfo<ClientStats>{"tx_requests", &ClientStats::tx_requests, "REQUEST frames written"},
    CounterInfo<ClientStats>{"tx_hellos", &ClientStats::tx_hellos, "HELLO frames written"},
    CounterInfo<ClientStats>{"retries", &ClientStats::retries, "pages asked for again"},
    CounterInfo<ClientStats>{"prefetch_given_up", &ClientStats::prefetch_given_up,
                             "prefetched pages that never came"},
    CounterInfo<ClientStats>{"absent_pages", &ClientStats::absent_pages,
                             "pages the server does not have"},
    CounterInfo<ClientStats>{"partial_evicted", &ClientStats::partial_evicted,
                             "half-received pages displaced by others"},
    CounterInfo<ClientStats>{"overdue_pages", &ClientStats::overdue_pages,
                             "demanded pages that a live server did not deliver"},
    CounterInfo<ClientStats>{"server_restarts", &ClientStats::server_restarts,
                             "new incarnations of the server seen"},
    CounterInfo<ClientStats>{"server_dead", &ClientStats::server_dead,
                             "times the server was given up"},
    CounterInfo<ClientStats>{"refusals", &ClientStats::refusals,
                             "times the server said that its client table is full"},
    CounterInfo<ClientStats>{"sibling_requests", &ClientStats::sibling_requests,
                             "REQUEST frames to the other hosts, the server being silent"},
    CounterInfo<ClientStats>{"rx_repairs", &ClientStats::rx_repairs,
                             "frames with pages that another host sent in its place"},
    CounterInfo<ClientStats>{"tx_repairs", &ClientStats::tx_repairs,
                             "pages that this host sent in its place"},
    CounterInfo<ClientStats>{"repairs_left", &ClientStats::repairs_left,
                             "of those it was asked for, sent by another host before"},
    CounterInfo<ClientStats>{"inflight", &ClientStats::inflight, "pages asked for, not here, now"},
    CounterInfo<ClientStats>{"srtt_us", &ClientStats::srtt_us,
                             "smoothed request-to-arrival time now"},
};
static_assert(kClientCounters.size() * sizeof(Counter) <= sizeof(ClientStats) &&
              sizeof(ClientStats) - kClientCounters.size() * sizeof(Counter) < kCacheLine);

}  // namespace snowfabric
