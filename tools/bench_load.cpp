// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_load.hpp"

#include <rte_errno.h>
#include <rte_ethdev.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/load_driver.hpp"
#include "tools/load_search.hpp"
#include "tools/load_server.hpp"

namespace snowfabric::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kBytesPerGbit = 1e9 / 8;

/// The members have addresses that are not the port's.
class Promiscuous {
 public:
  [[nodiscard]] static Result<Promiscuous> enter(std::uint16_t port_id) {
    const int status = rte_eth_promiscuous_enable(port_id);
    if (status != 0)
      return fail(-status, fmt::format("promiscuous mode of the port: {}", rte_strerror(-status)));
    return Promiscuous{port_id};
  }
  Promiscuous(Promiscuous&& other) noexcept
      : port_id_{other.port_id_}, active_{std::exchange(other.active_, false)} {}
  Promiscuous& operator=(Promiscuous&&) = delete;
  ~Promiscuous() {
    if (active_) rte_eth_promiscuous_disable(port_id_);
  }

 private:
  explicit Promiscuous(std::uint16_t port_id) noexcept : port_id_{port_id} {}
  std::uint16_t port_id_;
  bool active_ = true;
};

Json to_json(const LoadTrialResult& trial) {
  return {{"offered_gbps", trial.offered_bytes_per_s / kBytesPerGbit},
          {"gbps", trial.sent_bytes_per_s / kBytesPerGbit},
          {"frames_per_s", trial.frames_per_s},
          {"sent", trial.nb_sent},
          {"sent_bytes", trial.nb_bytes},
          {"lost_worst", trial.nb_lost_worst},
          {"lost_mean", trial.nb_lost_mean}};
}

void say_trial(const char* what, const LoadTrialResult& trial) {
  fmt::print(stderr, "fabric-bench: {}: {:.0f} frames/s ({:.3f} Gbit/s): the worst receiver {}\n",
             what, trial.frames_per_s, trial.sent_bytes_per_s / kBytesPerGbit,
             trial.nb_lost_worst == 0
                 ? std::string{"lacks none"}
                 : fmt::format("lacks {} of {}", trial.nb_lost_worst, trial.nb_sent));
}

/// @param most  bytes a second, to begin with
/// @return the best trial, with `unpaced` (the first) and all `trials`
Result<Json> no_drop_rate(LoadKind kind, const LoadOptions& options, double most,
                          LoadDriver& driver) {
  const char* const what = kind == LoadKind::kBare ? "limit" : "throughput";
  const auto length = std::chrono::milliseconds{static_cast<std::int64_t>(options.seconds * 1000)};
  RateSearch search{most, options.tolerance};
  Json trials = Json::array(), best;
  while (const auto offered = search.next()) {
    const auto trial = driver.measure(kind, *offered, length, options.nb_members);
    if (!trial) return std::unexpected(trial.error());
    say_trial(what, *trial);
    trials.push_back(to_json(*trial));
    if (search.note(trial->sent_bytes_per_s, trial->loss_worst())) best = trials.back();
  }
  if (best.is_null())
    return fail(EAGAIN, fmt::format("{}: frames were lost at each of {} rates, down to {:.4f} "
                                    "Gbit/s: --tolerance allows some, and other work on this "
                                    "machine costs some",
                                    what, trials.size(), trials.back()["gbps"].get<double>()));
  best["unpaced"] = trials.front();
  best["trials"] = std::move(trials);
  return best;
}

}  // namespace

Result<void> serve_load(const Port& port, const IdleConfig& idle, std::uint64_t seed,
                        const std::atomic<bool>& stop) {
  LoadServer server{port, seed};
  fmt::print("READY\n");
  std::fflush(stdout);
  server.run(stop, idle);
  const Json json{{"trials", server.nb_trials()},
                  {"bad_control_frames", server.nb_bad()},
                  {"foreign_frames", server.nb_foreign()}};
  fmt::print("{}\n", json.dump());
  return {};
}

Result<void> run_load(const LoadOptions& options, const Port& port, const IdleConfig& idle,
                      std::uint64_t seed, const std::atomic<bool>& interrupted) {
  const auto promiscuous = Promiscuous::enter(port.port_id());
  if (!promiscuous) return std::unexpected(promiscuous.error());
  LoadDriver driver{port, idle, seed, interrupted};
  const double most = options.max_gbps * kBytesPerGbit;
  auto limit = no_drop_rate(LoadKind::kBare, options, most, driver);
  if (!limit) return std::unexpected(limit.error());
  auto throughput = no_drop_rate(LoadKind::kThroughput, options, most, driver);
  if (!throughput) return std::unexpected(throughput.error());
  const Json json{{"members", options.nb_members},
                  {"seconds", options.seconds},
                  {"tolerance", options.tolerance},
                  {"mtu", port.mtu_bytes()},
                  {"limit", std::move(*limit)},
                  {"throughput", std::move(*throughput)},
                  {"kernel_drops", port.kernel_drops().value_or(0)},
                  {"bad_control_frames", driver.nb_bad()},
                  {"foreign_frames", driver.nb_foreign()}};
  fmt::print("{}\n", json.dump());
  return {};
}

}  // namespace snowfabric::bench
