// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_fetch.hpp"

#include <rte_cycles.h>

#include <algorithm>
#include <array>

namespace snowfabric::bench {
namespace {

// What memtap-dpdk has when nothing is said.
constexpr std::uint32_t kPrefetchPages = 16;
constexpr std::size_t kBufferPages = 256;
/// Enough to keep the pipe full.
constexpr std::size_t kVcpus = 256;
/// With a pushing server, no new page for so long: ask for what was missed.
constexpr Nanos kPushSilence = std::chrono::milliseconds{20};

/// Does between turns what memtap's control does: watches the join, then gives the order.
class Director {
 public:
  Director(const FetchConfig& config, const ClientEngine& engine, Host& host, ArenaGuest& guest,
           std::atomic<bool>& stop, const std::atomic<bool>& interrupted)
      : config_{config},
        engine_{engine},
        host_{host},
        guest_{guest},
        stop_{stop},
        interrupted_{interrupted} {}

  void step(Nanos now) {
    if (began_ == kNever) {
      began_ = now;
      asked_at_ = rte_rdtsc();
    }
    const double elapsed_s = std::chrono::duration<double>(now - began_).count();
    if (interrupted_.load() || elapsed_s > config_.timeout_s) stop_.store(true);
    if (!asked_ && engine_.state() == ClientState::kJoined && time_to_ask(now)) ask();
  }

  /// TSC of the first question; with a pushing server of the HELLO.
  [[nodiscard]] std::uint64_t asked_at() const noexcept { return asked_at_; }

 private:
  [[nodiscard]] bool time_to_ask(Nanos now) noexcept {
    if (config_.mode != Mode::kPush) return true;
    if (guest_.nb_installed() != last_installed_ || last_news_ == kNever) last_news_ = now;
    last_installed_ = guest_.nb_installed();
    return now - last_news_ > kPushSilence;
  }
  void ask() {
    asked_ = true;
    if (config_.mode != Mode::kPush) asked_at_ = rte_rdtsc();
    if (config_.mode == Mode::kFaults)
      guest_.begin_faulting(kVcpus);
    else
      host_.prefetch(std::array{PageRange{Gfn{0}, static_cast<std::uint32_t>(engine_.nb_pages())}});
  }

  const FetchConfig& config_;
  const ClientEngine& engine_;
  Host& host_;
  ArenaGuest& guest_;
  std::atomic<bool>& stop_;
  const std::atomic<bool>& interrupted_;
  Nanos began_ = kNever, last_news_ = kNever;
  std::uint64_t last_installed_ = 0, asked_at_ = 0;
  bool asked_ = false;
};

}  // namespace

std::optional<Mode> parse_mode(std::string_view text) noexcept {
  if (text == "list") return Mode::kList;
  if (text == "faults") return Mode::kFaults;
  if (text == "push") return Mode::kPush;
  return std::nullopt;
}

Fetched fetch(const FetchConfig& config, const Port& port, Arena& arena, const IdleConfig& idle,
              const std::atomic<bool>& interrupted) {
  std::atomic<bool> stop{false};
  ClientStats stats;
  HostStats host_stats;
  ClientConfig engine_config = config.engine;
  engine_config.max_pages = arena.nb_pages();  // a server that says more is not believed
  ClientEngine engine{engine_config, stats};
  Host host{engine, host_stats, kPrefetchPages, kBufferPages};
  ArenaGuest guest{arena, stop};
  ClientWorker worker{engine, port, 0.0, 1, config.seal};
  Director director{config, engine, host, guest, stop, interrupted};
  host.attach(guest);
  worker.serve(host, port.wait_fd());  // its faults follow arrivals: nothing else to wait for
  worker.run(stop, idle, [&](Nanos now) { director.step(now); });
  Fetched out;
  out.complete = guest.completed_at() != 0;
  out.nb_pages = guest.nb_installed();
  const std::uint64_t end = out.complete ? guest.completed_at() : rte_rdtsc();
  out.seconds =
      static_cast<double>(end - director.asked_at()) / static_cast<double>(rte_get_tsc_hz());
  append(out.counters, worker.stats(), kClientPortCounters);
  append(out.counters, worker.drops());
  out.counters.emplace_back("rx_kernel_drops", port.kernel_drops().value_or(0));
  append(out.counters, stats, kClientCounters);
  append(out.counters, host_stats, kHostCounters);
  return out;
}

std::uint64_t counter(const Snapshot& snapshot, std::string_view name) noexcept {
  const auto it = std::ranges::find(snapshot, name, &Snapshot::value_type::first);
  return it == snapshot.end() ? 0 : it->second;
}

}  // namespace snowfabric::bench
