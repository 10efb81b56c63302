// SPDX-License-Identifier: BSD-3-Clause
#include "sim/scenario.hpp"

#include <algorithm>
#include <initializer_list>

#include <fmt/format.h>

#include "fabric/base/prng.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

// Faults begin within this time, in which most runs are not over: see Outcome::nb_kinds_begun.
constexpr Nanos kFaultsWithin = 20ms;
// Of the server's silence a memtap endures 10 s: outages of one run must not add up to that.
constexpr Nanos kLongestOutage = 1500ms;
constexpr std::uint32_t kMaxFaults = 5;

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : prng_{seed} {}
  std::uint64_t below(std::uint64_t n) { return prng_.next() % n; }
  bool chance(double share) { return prng_.uniform() < share; }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(choices.size())];
  }
  double between(double low, double high) { return low + (high - low) * prng_.uniform(); }
  Nanos between(Nanos low, Nanos high) { return low + prng_.below(high - low); }

 private:
  Prng prng_;
};

bool is_outage(FaultKind kind) {
  return kind == FaultKind::kPartition || kind == FaultKind::kCrash || kind == FaultKind::kPause;
}

bool comes_late(FaultKind kind) {
  return kind == FaultKind::kLateJoin || kind == FaultKind::kLateGuest;
}

double amount_of(FaultKind kind, Draw& draw) {
  switch (kind) {
    case FaultKind::kLoss: return draw.between(0.01, 0.3);
    case FaultKind::kBursts: return draw.between(0.001, 0.02);
    case FaultKind::kDuplicates: return draw.between(0.01, 0.3);
    case FaultKind::kReordering: return draw.between(20e-6, 2e-3);
    case FaultKind::kCorruption: return draw.between(0.001, 0.05);
    case FaultKind::kSlowness: return draw.between(2e-6, 50e-6);
    case FaultKind::kBusyGuest: return static_cast<double>(1 + draw.below(20));
    case FaultKind::kStrangers:
    case FaultKind::kGivenBack: return static_cast<double>(1 + draw.below(200));
    default: return 0;
  }
}

Fault draw_fault(FaultKind kind, std::uint32_t nb_memtaps, Draw& draw) {
  const auto memtap = static_cast<std::uint32_t>(1 + draw.below(nb_memtaps));
  const bool any = is_outage(kind) || kind <= FaultKind::kCorruption ||
                   kind == FaultKind::kSlowness || kind == FaultKind::kLateJoin;
  Fault fault{
      .kind = kind,
      .at = draw.between(0ms, kFaultsWithin),
      .length = is_outage(kind) ? draw.between(1ms, kLongestOutage) : draw.between(5ms, 400ms),
      .party = any && draw.chance(0.4) ? 0 : memtap,
      .guest = static_cast<std::uint32_t>(draw.below(2)),
      .amount = amount_of(kind, draw)};
  if (kind == FaultKind::kServerDeath) fault.party = 0;
  if (comes_late(kind)) fault.at = 0ms;
  return fault;
}

/// Where the server is late the others begin with it: what goes wrong before it changes nothing.
void wait_for_server(std::vector<Fault>& faults) {
  const auto late = std::ranges::find_if(faults, [](const Fault& fault) {
    return fault.kind == FaultKind::kLateJoin && fault.party == 0;
  });
  if (late == faults.end()) return;
  for (Fault& fault : faults)
    if (!comes_late(fault.kind)) fault.at += late->length;
}

}  // namespace

Scenario Scenario::of_seed(std::uint64_t seed) {
  Draw draw{Prng{seed}.next()};  // neighbours share nothing
  Scenario scenario{.seed = seed,
                    .nb_pages = 2000 + draw.below(500),
                    .nb_memtaps = static_cast<std::uint32_t>(2 + draw.below(4)),
                    .mtu_bytes = static_cast<std::uint16_t>(draw.chance(0.7) ? 9000 : 1500),
                    .prefetch = static_cast<std::uint32_t>(draw.below(3) * 8),
                    .max_inflight = draw.one_of({4096U, 256U, 32U}),
                    .rx_ring = draw.one_of({4096U, 512U, 128U}),
                    .vcpus = draw.one_of({1U, 2U, 8U}),
                    .bytes_per_s = draw.one_of({1.25e9, 1.25e9, 2.5e8}),
                    .delay = draw.one_of<Nanos>({2us, 10us, 100us, 500us}),
                    .queue_bytes = draw.one_of({4096U, 512U, 64U}) * std::size_t{1024},
                    .push = draw.chance(0.2),
                    .zero_share = draw.between(0, 0.6),
                    .overlap = draw.between(0, 1)};
  scenario.guests_per_memtap = scenario.nb_memtaps < 4 ? 2 : 1;
  std::vector<FaultKind> kinds;
  const std::size_t nb_kinds = kLeastKinds + draw.below(kMaxFaults - kLeastKinds + 1);
  while (kinds.size() < nb_kinds) {
    const auto kind = static_cast<FaultKind>(draw.below(kNbFaultKinds));
    if (kind == FaultKind::kServerDeath && !draw.chance(0.2)) continue;
    if (std::ranges::find(kinds, kind) == kinds.end()) kinds.push_back(kind);
  }
  for (const FaultKind kind : kinds)
    scenario.faults.push_back(draw_fault(kind, scenario.nb_memtaps, draw));
  wait_for_server(scenario.faults);
  scenario.hash_tree = draw.chance(0.3);
  scenario.keeps = draw.chance(0.5);
  return scenario;
}

Nanos Scenario::outage() const {
  Nanos sum{0};
  for (const Fault& fault : faults)
    if (is_outage(fault.kind) || fault.kind == FaultKind::kLateJoin) sum += fault.length;
  return sum;
}

Nanos Scenario::faults_end() const {
  Nanos end{0};
  for (const Fault& fault : faults) end = std::max(end, fault.at + fault.length);
  return end;
}

bool Scenario::has(FaultKind kind) const {
  return std::ranges::any_of(faults, [kind](const Fault& fault) { return fault.kind == kind; });
}

std::string to_string(const Scenario& s) {
  std::string text = fmt::format(
      "seed {}: {} pages ({:.0f} % zero), {} memtaps of {} clones, {:.0f} % in one order, MTU {}, "
      "prefetch {}{}{}{}, {} in flight, rings of {}, {} vCPUs, {:g} Gbit/s, {} us a link, "
      "queues of {} KiB\n",
      s.seed, s.nb_pages, 100 * s.zero_share, s.nb_memtaps, s.guests_per_memtap, 100 * s.overlap,
      s.mtu_bytes, s.prefetch, s.push ? ", push" : "", s.hash_tree ? ", hash tree" : "",
      s.keeps ? ", pages kept" : "", s.max_inflight, s.rx_ring, s.vcpus, s.bytes_per_s * 8e-9,
      to_micros(s.delay), s.queue_bytes / 1024);
  for (const Fault& fault : s.faults)
    text += fmt::format("  {:9} us  {} at {} (guest {}) for {} us, {:g}\n", to_micros(fault.at),
                        to_string(fault.kind),
                        fault.party == 0 ? "the server" : fmt::format("memtap{}", fault.party),
                        fault.guest + 1, to_micros(fault.length), fault.amount);
  return text;
}

}  // namespace snowfabric::sim
