// SPDX-License-Identifier: BSD-3-Clause
#include "sim/checks.hpp"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

namespace snowfabric::sim {

void check_frames(const Party& party, Judge& judge) {
  for (const Link* link : {&party.up, &party.down})
    if (link->counters.offered + link->counters.duplicated !=
        link->counters.carried + link->counters.nb_lost())
      judge.broken(Breach::kFrames,
                   fmt::format("{}: a link has lost count of its frames", party.name));
  const std::uint64_t known = party.rx_taken + party.rx_ring_full + party.rx_died_with_it +
                              party.rx_refused_by_card + party.rx.size() + party.nb_under_way;
  if (party.up.counters.carried !=
      party.tx_switched + party.tx_refused_by_switch + party.nb_to_switch)
    judge.broken(Breach::kFrames, fmt::format("{}: of {} frames it sent not all came to the switch",
                                              party.name, party.up.counters.carried));
  if (party.down.counters.carried != known)
    judge.broken(Breach::kFrames,
                 fmt::format("{}: {} frames were carried to it, of which {} are known of",
                             party.name, party.down.counters.carried, known));
}

void check_bounds(const ServerParty& server, std::size_t most_clients, Judge& judge) {
  const std::uint64_t nb_clients = server.stats->clients.read();
  const std::uint64_t nb_refused = server.stats->clients_refused.read();
  if (nb_clients > most_clients || nb_refused != 0)
    judge.broken(Breach::kBounds,
                 fmt::format("the server has {} clients, refused {}, and there were {} at most",
                             nb_clients, nb_refused, most_clients));
}

void check_bounds(const Memtap& memtap, Judge& judge) {
  if (!memtap.process) return;
  const ClientEngine& engine = memtap.engine();
  const auto check = [&](std::size_t nb, std::size_t most, const char* of) {
    if (nb > most)
      judge.broken(Breach::kBounds,
                   fmt::format("{} has {} {}, {} at most", memtap.name, nb, of, most));
  };
  check(engine.nb_in_flight(), memtap.config.max_inflight, "pages in flight");
  check(engine.nb_demands(), engine.nb_in_flight(), "pages in flight that are waited for");
  if (!memtap.process->host) return;
  check(memtap.process->host->guests().size(), memtap.guests.size(), "guests");
  check(memtap.process->host->recorded().size(),
        std::min<std::size_t>(Host::kMaxRecorded, engine.nb_pages()), "recorded ranges");
}

void check_quiet(const Memtap& memtap, Judge& judge) {
  if (memtap.process && !memtap.process->loop.quiet())
    judge.broken(Breach::kBounds,
                 fmt::format("{} is not quiet though nobody waits: {} pages in flight", memtap.name,
                             memtap.engine().nb_in_flight()));
}

}  // namespace snowfabric::sim
