// SPDX-License-Identifier: BSD-3-Clause
#include "sim/plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "sim/lab.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

constexpr Nanos kSlice = 1ms;                                  // between two looks at the progress
constexpr std::uint64_t kMostPages = std::uint64_t{1} << 18U;  // of an image that is run
constexpr std::uint64_t kSmaller = 4;                          // is the other one, where two are
// Until its first tick, after 10 ms, the server knows of no losses, and answers who lost a page
// alone. What goes out in less time than that says little of the bytes that a larger image takes.
constexpr Nanos kStartUp = 11ms;
constexpr Nanos kLimit = std::chrono::hours{24};

double seconds(Nanos time) { return std::chrono::duration<double>(time).count(); }

/// What clones touch, and in which order: first some of all siblings' order, then their own; or
/// what others have touched.
class Orders {
 public:
  explicit Orders(const PlanConfig& config)
      : config_{config},
        nb_touched_{std::max<std::size_t>(
            1, static_cast<std::size_t>(
                   std::llround(static_cast<double>(config.nb_pages) * config.touched)))},
        nb_shared_{static_cast<std::size_t>(
            std::llround(static_cast<double>(nb_touched_) * config.overlap))},
        shared_{shuffled(config.nb_pages, config.seed)} {}

  [[nodiscard]] std::vector<std::uint64_t> of(std::uint64_t clone) const {
    const auto& traces = config_.traces;
    return traces.empty() ? drawn(config_.seed + 1 + clone) : traces[clone % traces.size()];
  }

 private:
  [[nodiscard]] std::vector<std::uint64_t> drawn(std::uint64_t seed) const {
    std::vector<std::uint64_t> order(shared_.begin(),
                                     shared_.begin() + static_cast<std::ptrdiff_t>(nb_shared_));
    std::vector<bool> has(config_.nb_pages);
    for (const std::uint64_t page : order) has[page] = true;
    for (const std::uint64_t page : shuffled(config_.nb_pages, seed)) {
      if (order.size() == nb_touched_) break;
      if (!has[page]) order.push_back(page);
    }
    return order;
  }

  const PlanConfig& config_;
  std::size_t nb_touched_, nb_shared_;
  std::vector<std::uint64_t> shared_;
};

ServerConfig server_of(const PlanConfig& config) {
  ServerConfig server = config.server;
  server.mtu_bytes = config.mtu_bytes;
  server.push = config.push;
  server.push_bytes_per_s = config.push_bytes_per_s;
  server.max_clients = config.nb_clones;
  server.flow.max_bytes_per_s = config.bytes_per_s;
  server.flow.initial_bytes_per_s = config.start_bytes_per_s > 0
                                        ? std::min(config.start_bytes_per_s, config.bytes_per_s)
                                        : config.bytes_per_s;
  return server;
}

class Run {
 public:
  explicit Run(const PlanConfig& config)
      : config_{config},
        image_{config.nb_pages, config.zero_share, config.seed},
        lab_{image_, server_of(config), config.seed} {
    LinkConfig link{.delay = config.link_delay,
                    .bytes_per_s = config.bytes_per_s,
                    .queue_bytes = config.queue_bytes,
                    .burst_bytes = config.burst_bytes};
    lab_.server().up.config = lab_.server().down.config = link;
    // A turn is one frame at most: it must not be what limits the rate.
    lab_.server().speed.turn = std::min<Nanos>(1us, lab_.server().up.time_on_wire(kPageSize) / 8);
    lab_.server().speed.frame = config.per_frame;
    const Orders orders{config};
    for (std::uint64_t i = 0; i < config.nb_clones; ++i) {
      if (is_slow(i)) link.bytes_per_s = config.slow_bytes_per_s;
      Memtap& memtap =
          lab_.add_memtap(link, [&](ClientConfig& client) { client.rto = config.rto; });
      memtap.up.config = link;
      memtap.speed.frame = config.per_frame;
      memtap.prefetch = config.prefetch;
      lab_.add_guest(memtap, orders.of(i), {config.think, config.fault});
    }
  }

  PlanResult run(const std::function<bool(double)>& progress) {
    for (Nanos until = kSlice; !lab_.run(until) && until < kLimit; until += kSlice) {
      if (!all_joined_) on_all_joined();
      if (progress && !progress(share_done())) break;
    }
    return result();
  }

 private:
  [[nodiscard]] bool is_slow(std::uint64_t clone) const {
    return clone + config_.nb_slow >= config_.nb_clones;
  }
  void on_all_joined() {
    all_joined_ = std::ranges::all_of(
        lab_.memtaps(), [](const auto& memtap) { return memtap->process->host != nullptr; });
    if (!all_joined_) return;
    for (std::uint64_t i = 0; i < config_.nb_clones; ++i)
      if (is_slow(i) == (config_.tagged == Tagged::kSlow))
        lab_.server().engine->tag(lab_.memtaps()[i]->config.client_id);
    lose();
  }
  /// Not before all have joined: who says HELLO twice is late, which is not what is asked for here.
  void lose() {
    if (config_.loss_at == LossAt::kUplink)
      lab_.server().up.config.loss = config_.loss;
    else
      for (const auto& memtap : lab_.memtaps()) memtap->down.config.loss = config_.loss;
  }
  [[nodiscard]] double share_done() const {
    double done = 0;
    for (const auto& memtap : lab_.memtaps()) {
      const GuestCounters& counters = memtap->guests.front()->counters();
      done += static_cast<double>(counters.installed_pages.read() + counters.zero_pages.read());
    }
    return done / static_cast<double>(config_.nb_pages * config_.nb_clones);
  }

  [[nodiscard]] PlanResult result() {
    PlanResult result{.nb_clones = config_.nb_clones,
                      .nb_pages = config_.nb_pages,
                      .nb_pages_run = config_.nb_pages};
    const ServerStats& stats = lab_.server_stats();
    const auto read = [](const Counter& counter) { return static_cast<double>(counter.read()); };
    result.wire_bytes = static_cast<double>(lab_.wire_bytes());
    result.pages_multicast = read(stats.tx_pages_multicast);
    result.pages_unicast = read(stats.tx_pages_unicast);
    result.wants = read(stats.wants);
    result.lockstep_hits = read(stats.lockstep_hits);
    result.retries = read(stats.wants_retried);
    result.request_bytes = static_cast<double>(lab_.server().rx_bytes);
    result.request_frames = static_cast<double>(lab_.server().rx_taken);
    result.server_ring_drops = static_cast<double>(lab_.server().rx_ring_full);
    result.queue_drops = static_cast<double>(lab_.server().down.counters.queue_full);
    for (std::uint64_t i = 0; i < config_.nb_clones; ++i) {
      const auto& memtap = lab_.memtaps()[i];
      const Guest& guest = *memtap->guests.front();
      result.longest_wait_s =
          std::max(result.longest_wait_s, seconds(guest.longest_wait(lab_.now())));
      if (guest.done_at() != kNever) result.done_s.push_back(seconds(guest.done_at()));
      if (is_slow(i)) result.slow_done_s = std::max(result.slow_done_s, seconds(guest.done_at()));
      result.ring_drops += static_cast<double>(memtap->rx_ring_full);
      result.queue_drops += static_cast<double>(memtap->down.counters.queue_full);
    }
    std::ranges::sort(result.done_s);
    return result;
  }

  PlanConfig config_;
  TestImage image_;
  Lab lab_;
  bool all_joined_ = false;
};

/// Of the two images that are run for an answer that is extrapolated.
struct Sizes {
  std::uint64_t small, large;  ///< pages
  bool start_up;               ///< the small one goes out before the server knows of losses
};

/// Pages of the smallest image that is still sent when the server knows of losses; 0: there are
/// none that only some have.
double least_pages(const PlanConfig& config) {
  if (config.loss <= 0 || config.loss_at == LossAt::kUplink) return 0;
  const double sent = (1 - config.zero_share) * (config.push ? 1 : config.touched);
  const double nb_sent =
      seconds(kStartUp) * server_of(config).flow.initial_bytes_per_s / double{kPageSize};
  return std::ceil(nb_sent / std::max(sent, 1e-9));
}

Sizes sizes_of(const PlanConfig& config) {
  const std::uint64_t most =
      std::clamp<std::uint64_t>(config.most_receptions / config.nb_clones, kSmaller, kMostPages);
  const std::uint64_t small = most / kSmaller;
  const double least = least_pages(config);
  const Sizes sizes{small, most, static_cast<double>(small) < least};
  const double large = 1.5 * least;  // more costs time, and tells little more
  if (!sizes.start_up || large > std::min(1.5 * static_cast<double>(most), double{kMostPages}))
    return sizes;
  return {static_cast<std::uint64_t>(least), std::max(most, static_cast<std::uint64_t>(large)),
          false};
}

/// The figures of `large`, had its image `nb_pages`, from what they grew by since `small`.
PlanResult extrapolated(const PlanResult& small, PlanResult large, std::uint64_t nb_pages) {
  const double steps = static_cast<double>(nb_pages - large.nb_pages_run) /
                       static_cast<double>(large.nb_pages_run - small.nb_pages_run);
  // By the median clone: what the last one waits for once more is the same in an image of any size.
  const double more_s = std::max(0.0, large.done_at(0.5) - small.done_at(0.5)) * steps;
  for (double& done : large.done_s) done += more_s;
  if (large.slow_done_s > 0) large.slow_done_s += more_s;
  for (const auto figure :
       {&PlanResult::wire_bytes, &PlanResult::request_bytes, &PlanResult::request_frames,
        &PlanResult::server_ring_drops, &PlanResult::pages_multicast, &PlanResult::pages_unicast,
        &PlanResult::wants, &PlanResult::lockstep_hits, &PlanResult::retries,
        &PlanResult::ring_drops, &PlanResult::queue_drops})
    large.*figure += std::max(0.0, large.*figure - small.*figure) * steps;
  large.nb_pages = nb_pages;
  return large;
}

}  // namespace

double PlanResult::done_at(double share) const {
  const double nb = std::max(1.0, std::ceil(share * static_cast<double>(nb_clones)));
  const auto index = static_cast<std::size_t>(nb) - 1;
  return index < done_s.size() ? done_s[index] : std::numeric_limits<double>::infinity();
}

std::uint64_t most_pages_run(const PlanConfig& config) { return sizes_of(config).large; }

PlanResult plan(const PlanConfig& config, const std::function<bool(double)>& progress) {
  const Sizes sizes = sizes_of(config);
  if (config.nb_pages <= sizes.large) return Run{config}.run(progress);
  PlanConfig less = config;
  less.nb_pages = sizes.small;
  const double share_small =
      static_cast<double>(sizes.small) / static_cast<double>(sizes.small + sizes.large);
  const auto first = [&](double share) { return !progress || progress(share_small * share); };
  const auto second = [&](double share) {
    return !progress || progress(share_small + (1 - share_small) * share);
  };
  PlanResult small = Run{less}.run(first);
  if (!small.finished()) return small;
  less.nb_pages = sizes.large;
  PlanResult large = Run{less}.run(second);
  if (!large.finished()) return large;
  large.from_start_up = sizes.start_up;
  return extrapolated(small, std::move(large), config.nb_pages);
}

}  // namespace snowfabric::sim
