// SPDX-License-Identifier: BSD-3-Clause
#include "sim/run.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "fabric/crc32c.hpp"
#include "sim/checks.hpp"
#include "sim/lab.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

/// A fault may take so long beside the time in which the server cannot be reached: retries back
/// off.
constexpr Nanos kPatience = 8s;

/// Between two looks at what must hold at any time.
constexpr Nanos kSlice = 1ms;
/// When nobody waits any more, whatever is under way is through, and prefetch given up.
constexpr Nanos kUntilQuiet = 3s;

constexpr double kBurstEnds = 0.05;  // bursts are of 20 frames

/// Of memtaps, that are started.
std::size_t nb_processes(const Scenario& scenario) {
  const auto is_restart = [](const Fault& fault) {
    return fault.kind == FaultKind::kCrash && fault.party != 0;
  };
  return scenario.nb_memtaps +
         static_cast<std::size_t>(std::ranges::count_if(scenario.faults, is_restart));
}

ServerConfig server_of(const Scenario& scenario) {
  return {.mtu_bytes = scenario.mtu_bytes,
          .push = scenario.push,
          .max_clients = nb_processes(scenario)};
}

/// A scenario that runs.
class Play {
 public:
  Play(const Scenario& scenario, const Trace& trace, bool trace_frames)
      : scenario_{scenario},
        image_{scenario.nb_pages, scenario.zero_share, scenario.seed},
        lab_{image_, server_of(scenario), scenario.seed},
        prng_{scenario.seed ^ 0xf00dU} {
    if (scenario.hash_tree) tree_ = image_.hash_tree();
    lab_.trace = trace;
    lab_.trace_frames = trace_frames;
    lab_.unanswered_end = true;
    lab_.after_turn = [this](const Party& party) { check_turn(party); };
    lab_.server().speed.rx_ring = scenario.rx_ring;
    lab_.server().up.config = lab_.server().down.config = link();
    if (is_late(0)) lab_.kill_server();
    for (std::uint32_t i = 0; i < scenario.nb_memtaps; ++i) add_memtap(i);
    for (const Fault& fault : scenario.faults) plan(fault);
  }

  Outcome run() {
    play();
    Outcome outcome = tally();
    if (lab_.judge().ok() && !server_is_dead_) quieten();
    outcome.nb_broken = lab_.judge().nb_broken();
    outcome.first = lab_.judge().first();
    outcome.broken = lab_.judge().broken();
    return outcome;
  }

 private:
  /// Until all clones are settled, or something is broken.
  void play() {
    const Nanos limit = scenario_.faults_end() + kPatience + give_up() + 60s;
    bool settled = false;
    for (Nanos until = kSlice; !settled && until <= limit && lab_.judge().ok(); until += kSlice) {
      settled = lab_.run(until);
      check(until);
    }
    if (!settled && lab_.judge().ok()) complain_of_hanging();
  }
  [[nodiscard]] Outcome tally() {
    Outcome outcome{.took = lab_.now(),
                    .nb_frames = lab_.server().rx_taken,
                    .wire_bytes = lab_.wire_bytes(),
                    .nb_kinds_begun = begun_.size()};
    for (const auto& memtap : lab_.memtaps()) {
      outcome.nb_frames += memtap->rx_taken;
      if (is_orphaned(*memtap)) continue;
      for (const auto& guest : memtap->guests) {
        outcome.longest_wait = std::max(outcome.longest_wait, guest->longest_wait(lab_.now()));
        outcome.nb_failed_guests += guest->failed() ? 1 : 0;
      }
    }
    return outcome;
  }
  /// Nobody waits any more, and so nothing is left in a table.
  void quieten() {
    lab_.run_until(std::max(lab_.now(), scenario_.faults_end()) + kUntilQuiet);
    for (const auto& memtap : lab_.memtaps()) check_quiet(*memtap, lab_.judge());
    check(lab_.now());
  }
  [[nodiscard]] LinkConfig link() const {
    return {.delay = scenario_.delay,
            .bytes_per_s = scenario_.bytes_per_s,
            .queue_bytes = scenario_.queue_bytes};
  }
  [[nodiscard]] bool is_late(std::uint32_t party) const {
    return std::ranges::any_of(scenario_.faults, [party](const Fault& fault) {
      return fault.kind == FaultKind::kLateJoin && fault.party == party;
    });
  }
  [[nodiscard]] bool is_late(std::uint32_t party, std::uint32_t guest) const {
    return std::ranges::any_of(scenario_.faults, [&](const Fault& fault) {
      return fault.kind == FaultKind::kLateGuest && fault.party == party &&
             fault.guest % scenario_.guests_per_memtap == guest;
    });
  }
  void add_memtap(std::uint32_t number) {
    const auto tune = [this](ClientConfig& config) {
      config.max_inflight = scenario_.max_inflight;
      config.partial_pages = scenario_.max_inflight;
      config.tree = tree_ ? &*tree_ : nullptr;
    };
    Memtap& memtap = lab_.add_memtap(link(), tune, !is_late(number + 1));
    memtap.up.config = link();
    memtap.speed.rx_ring = scenario_.rx_ring;
    memtap.prefetch = scenario_.prefetch;
    memtap.keeps = scenario_.keeps;
    for (std::uint32_t g = 0; g < scenario_.guests_per_memtap; ++g) {
      const bool same = prng_.uniform() < scenario_.overlap;
      const std::uint64_t order_seed = same ? scenario_.seed : prng_.next();
      const Guest::Pace pace{.think = number % 2 == 0 ? 0us : 2us};
      Guest& guest = lab_.add_guest(memtap, shuffled(scenario_.nb_pages, order_seed), pace,
                                    !is_late(number + 1, g));
      Prng orders{order_seed};
      for (std::uint32_t vcpu = 1; vcpu < scenario_.vcpus; ++vcpu)
        guest.add_vcpu(shuffled(scenario_.nb_pages, orders.next()), pace);
    }
  }

  Party& party(const Fault& fault) {
    if (fault.party == 0) return lab_.server();
    return memtap(fault);
  }
  Memtap& memtap(const Fault& fault) {
    return *lab_.memtaps()[(fault.party + scenario_.nb_memtaps - 1) % scenario_.nb_memtaps];
  }
  Guest& guest(const Fault& fault) {
    const auto& guests = memtap(fault).guests;
    return *guests[fault.guest % guests.size()];
  }

  void plan(const Fault& fault) {
    lab_.at(fault.at, [this, fault] { begin(fault); });
    lab_.at(fault.at + fault.length, [this, fault] { end(fault); });
  }
  /// A setting of the links of a party, and back.
  void set_links(const Fault& fault, const std::function<void(LinkConfig&)>& set) {
    set(party(fault).up.config);
    set(party(fault).down.config);
  }
  void set(const Fault& fault, double amount) {
    switch (fault.kind) {
      case FaultKind::kLoss: return set_links(fault, [=](LinkConfig& l) { l.loss = amount; });
      case FaultKind::kBursts:
        return set_links(fault, [=](LinkConfig& l) {
          l.burst_begins = amount;
          l.burst_ends = amount > 0 ? kBurstEnds : 1;
        });
      case FaultKind::kDuplicates:
        return set_links(fault, [=](LinkConfig& l) { l.duplicate = amount; });
      case FaultKind::kReordering:
        return set_links(fault, [=](LinkConfig& l) {
          l.jitter = Nanos{static_cast<std::int64_t>(amount * 1e9)};
        });
      case FaultKind::kCorruption:
        return set_links(fault, [=](LinkConfig& l) { l.corrupt = amount; });
      case FaultKind::kSlowness:
        party(fault).speed.frame = Nanos{static_cast<std::int64_t>(amount * 1e9)};
        return;
      default: return;
    }
  }
  void begin(const Fault& fault) {
    begun_.insert(fault.kind);
    say(fault, "begins");
    set(fault, fault.amount);
    switch (fault.kind) {
      case FaultKind::kPartition: party(fault).up.down = party(fault).down.down = true; return;
      case FaultKind::kCrash: return take_down(fault);
      case FaultKind::kLateJoin: ++nb_down_[&party(fault)]; return;
      case FaultKind::kServerDeath: server_is_dead_ = true; return lab_.kill_server();
      case FaultKind::kPause: return lab_.pause(party(fault), fault.at + fault.length);
      case FaultKind::kGuestPause: return guest(fault).pause(fault.at + fault.length);
      case FaultKind::kGuestDeath: return lab_.kill_guest(memtap(fault), guest(fault));
      case FaultKind::kBusyGuest:
        guest(fault).nb_busy = static_cast<unsigned>(fault.amount);
        return;
      case FaultKind::kStrangers:
        for (double i = 0; i < fault.amount; ++i)
          lab_.at(fault.at + Nanos{static_cast<std::int64_t>(
                                 i / fault.amount * static_cast<double>(fault.length.count()))},
                  [this, fault] { send_stranger(memtap(fault)); });
        return;
      case FaultKind::kGivenBack:
        for (double i = 0; i < fault.amount; ++i)
          guest(fault).discard(Gfn{prng_.next() % scenario_.nb_pages});
        return;
      default: return;
    }
  }
  void end(const Fault& fault) {
    set(fault, 0);
    switch (fault.kind) {
      case FaultKind::kPartition: party(fault).up.down = party(fault).down.down = false; break;
      case FaultKind::kCrash:
      case FaultKind::kLateJoin: bring_up(fault); break;
      case FaultKind::kLateGuest: lab_.attach_guest(memtap(fault), guest(fault)); break;
      default: break;
    }
    say(fault, "is over");
  }
  /// Until each fault that holds it down is over.
  void take_down(const Fault& fault) {
    if (++nb_down_[&party(fault)] > 1) return;
    if (fault.party == 0) return lab_.kill_server();
    lab_.kill_memtap(memtap(fault));
  }
  void bring_up(const Fault& fault) {
    if (--nb_down_[&party(fault)] > 0) return;
    if (fault.party != 0) return lab_.start_memtap(memtap(fault));
    if (!server_is_dead_) lab_.start_server(static_cast<std::uint32_t>(prng_.next()) | 1U);
  }
  /// A page as it is in another snapshot of the parent, or of another parent; or one that an
  /// insider made, where memtaps can tell.
  void send_stranger(Memtap& to) {
    wire::Identity who{image_.view().image_id, image_.view().epoch, 1, 0};
    switch (prng_.next() % (tree_ ? 3 : 2)) {
      case 0: ++who.epoch; break;
      case 1: ++who.image_id; break;
      default: break;
    }
    lab_.inject(to, made_up(who, to.mac));
  }
  /// A page, or that one is zero or absent; the latter two only where memtaps can tell.
  Bytes made_up(const wire::Identity& who, const MacAddr& to) {
    const PageRange page{Gfn{prng_.next() % image_.nb_pages}, 1};
    Bytes frame(wire::page_wire_bytes(1), static_cast<std::byte>(prng_.next()));
    if (const auto kind = tree_ ? prng_.next() % 3 : 0; kind != 0) {
      const auto type = kind == 1 ? wire::FrameType::kZeros : wire::FrameType::kAbsent;
      frame.resize(wire::write_ranges(frame, type, who, to, kServerMac, std::span{&page, 1}, 0, 0));
      return frame;
    }
    const auto data = std::span{frame}.subspan(wire::kPageHeaderBytes);
    wire::write_page_header(frame, who, to, kServerMac, page.first, crc32c(data), 0, 1, 0, 0);
    return frame;
  }
  void say(const Fault& fault, const char* what) const {
    if (lab_.trace)
      lab_.trace(lab_.now(),
                 fmt::format("{} of party {} {}", to_string(fault.kind), fault.party, what));
  }

  [[nodiscard]] static Nanos give_up() { return ClientConfig{}.give_up; }
  void broken(Breach kind, std::string what) { lab_.judge().broken(kind, std::move(what)); }

  /// Its clones wait for the next one, and need not be told: the server had died before it joined.
  [[nodiscard]] bool is_orphaned(const Memtap& memtap) const {
    return server_is_dead_ && !memtap.process;
  }
  void complain_of_hanging() {
    for (const auto& memtap : lab_.memtaps())
      for (const auto& guest : memtap->guests)
        if (!guest->done() && !guest->gone() && !guest->failed() && !is_orphaned(*memtap))
          broken(Breach::kHangs, fmt::format("{} hangs: its longest wait is {} us", guest->name(),
                                             to_micros(guest->longest_wait(lab_.now()))));
  }
  /// What must hold at any time.
  void check(Nanos now) {
    check_frames(lab_.server(), lab_.judge());
    for (const auto& memtap : lab_.memtaps()) {
      check_frames(*memtap, lab_.judge());
      if (is_orphaned(*memtap)) continue;
      for (const auto& guest : memtap->guests) check(*guest, now);
    }
  }
  void check(const Guest& guest, Nanos now) {
    const Nanos wait = guest.longest_wait(now);
    const Nanos bound = scenario_.outage() + kPatience + (server_is_dead_ ? give_up() : Nanos{0});
    if (wait > bound)
      broken(Breach::kLate, fmt::format("{} waited {} us for a page, more than {}", guest.name(),
                                        to_micros(wait), to_micros(bound)));
    if (guest.failed() && !server_is_dead_)
      broken(Breach::kToldAbsent,
             fmt::format("{} was told that a page cannot be had, though the server lives",
                         guest.name()));
  }
  /// After each of its turns.
  void check_turn(const Party& party) {
    if (&party == &lab_.server())
      check_bounds(lab_.server(), nb_processes(scenario_), lab_.judge());
    else
      check_bounds(static_cast<const Memtap&>(party), lab_.judge());
  }

  const Scenario& scenario_;
  TestImage image_;
  std::optional<HashTree> tree_;
  Lab lab_;
  Prng prng_;
  std::map<const Party*, unsigned> nb_down_;  // faults that hold it down now
  std::set<FaultKind> begun_;
  bool server_is_dead_ = false;
};

}  // namespace

Outcome run(const Scenario& scenario, const Trace& trace, bool trace_frames) {
  return Play{scenario, trace, trace_frames}.run();
}

Scenario shrink(Scenario scenario) {
  const Breach first = run(scenario).first;
  const auto keep_if_broken = [&scenario, first](Scenario smaller) {
    const Outcome outcome = run(smaller);
    if (outcome.ok() || outcome.first != first) return false;
    scenario = std::move(smaller);
    return true;
  };
  for (std::size_t i = 0; i < scenario.faults.size();) {
    Scenario without = scenario;
    without.faults.erase(without.faults.begin() + static_cast<std::ptrdiff_t>(i));
    if (!keep_if_broken(std::move(without))) ++i;
  }
  for (bool smaller = true; smaller;) {
    smaller = false;
    Scenario half = scenario;
    half.nb_pages /= 2;
    if (half.nb_pages >= 16) smaller = keep_if_broken(half);
    Scenario fewer = scenario;
    const std::uint32_t last = fewer.nb_memtaps--;
    std::erase_if(fewer.faults, [last](const Fault& fault) { return fault.party == last; });
    if (fewer.nb_memtaps > 0) smaller = keep_if_broken(fewer) || smaller;
    Scenario single = scenario;
    single.guests_per_memtap = 1;
    if (scenario.guests_per_memtap > 1) smaller = keep_if_broken(single) || smaller;
    Scenario simple = scenario;
    simple.vcpus = 1;
    if (scenario.vcpus > 1) smaller = keep_if_broken(simple) || smaller;
  }
  return scenario;
}

}  // namespace snowfabric::sim
