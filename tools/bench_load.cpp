// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_load.hpp"

#include <rte_errno.h>
#include <rte_ethdev.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <span>
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
constexpr std::uint64_t kMaxTouches = 1U << 28U;  // of traces from the seed: 1 GiB of numbers

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
          {"seconds", trial.seconds},
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

/// @param all  has the best trial at the end, with `unpaced` (the first) and all `trials`; where it
///             failed, those that were done
Result<void> no_drop_rate(LoadKind kind, const LoadOptions& options, LoadDriver& driver,
                          Json& all) {
  const char* const what = kind == LoadKind::kBare ? "limit" : "throughput";
  Json& best = all[what] = Json::object();
  const auto length = std::chrono::milliseconds{static_cast<std::int64_t>(options.seconds * 1000)};
  RateSearch search{options.max_gbps * kBytesPerGbit, options.tolerance};
  Json trials = Json::array();
  Result<void> status;
  while (const auto offered = search.next()) {
    const auto trial = driver.measure(kind, *offered, length, options.nb_members);
    if (!trial) {
      status = std::unexpected(trial.error());
      break;
    }
    say_trial(what, *trial);
    trials.push_back(to_json(*trial));
    if (search.note(trial->sent_bytes_per_s, trial->loss_worst())) best = trials.back();
  }
  if (status && best.empty())
    status = fail(EAGAIN, fmt::format("{}: frames were lost at each of {} rates, down to {:.4f} "
                                      "Gbit/s: --tolerance allows some, and other work on this "
                                      "machine costs some",
                                      what, trials.size(), trials.back()["gbps"].get<double>()));
  if (!trials.empty()) best["unpaced"] = trials.front();
  best["trials"] = std::move(trials);
  return status;
}

double micros(Nanos time) { return static_cast<double>(time.count()) / 1e3; }

Result<std::vector<LoadTrace>> traces_of(const LoadOptions& options, std::uint64_t seed) {
  if (!options.trace_paths.empty()) return read_traces(options.trace_paths);
  if (options.nb_touched > options.nb_pages)
    return fail(EINVAL, fmt::format("--touched {}: more than the {} pages of the image",
                                    options.nb_touched, options.nb_pages));
  if (std::uint64_t{options.nb_members} * options.nb_touched > kMaxTouches)
    return fail(EINVAL, fmt::format("--members {} --touched {}: more than {} pages in all",
                                    options.nb_members, options.nb_touched, kMaxTouches));
  return make_traces(options.nb_members, options.nb_touched, options.nb_pages, seed);
}

Result<Json> replay(const LoadOptions& options, std::span<const LoadTrace> traces,
                    LoadDriver& driver) {
  std::uint32_t nb_pages = 0;
  for (const LoadTrace& trace : traces) nb_pages = std::max(nb_pages, std::ranges::max(trace) + 1);
  fmt::print(stderr, "fabric-bench: replay: {} members, {} vCPUs each\n", options.nb_members,
             options.nb_vcpus);
  const auto done = driver.replay(
      {.traces = traces,
       .nb_pages = nb_pages,
       .nb_members = options.nb_members,
       .nb_vcpus = options.nb_vcpus,
       .max_bytes_per_s = options.max_gbps * kBytesPerGbit,
       .patience = std::chrono::milliseconds{static_cast<std::int64_t>(options.timeout_s * 1000)}});
  if (!done) return std::unexpected(done.error());
  return Json{{"traces", traces.size()},
              {"vcpus", options.nb_vcpus},
              {"seconds", done->seconds},
              {"touched", done->nb_touched},
              {"waits", done->nb_waits},
              {"wait_us_p50", micros(done->wait_p50)},
              {"wait_us_p99", micros(done->wait_p99)},
              {"wait_us_max", micros(done->wait_max)},
              {"retries", done->nb_retries},
              {"tx_bytes", done->nb_tx_bytes},
              {"sent", done->nb_sent},
              {"lost_worst", done->nb_lost_worst},
              {"lost_mean", done->nb_lost_mean}};
}

Json delays_json(std::vector<Nanos> delays) {
  std::ranges::sort(delays);
  const auto at = [&](double share) {
    const auto place = std::lround(share * static_cast<double>(delays.size() - 1));
    return micros(delays[static_cast<std::size_t>(place)]);
  };
  return {{"us_median", at(0.5)}, {"us_p99", at(0.99)}, {"us_max", at(1)}};
}

Result<Json> joins(const LoadOptions& options, LoadDriver& driver) {
  fmt::print(stderr, "fabric-bench: join: {} times\n", options.nb_joins);
  auto delays = driver.join_and_leave(options.nb_joins, options.join_gbps * kBytesPerGbit);
  if (!delays) return std::unexpected(delays.error());
  return Json{{"times", options.nb_joins},
              {"gbps", options.join_gbps},
              {"join", delays_json(std::move(delays->joins))},
              {"leave", delays_json(std::move(delays->leaves))}};
}

/// All that is not skipped, one after the other. @param all  has what was measured, also on failure
Result<void> run_all(const LoadOptions& options, std::uint64_t seed, LoadDriver& driver,
                     Json& all) {
  const auto wanted = [&](const char* what) {
    return std::ranges::find(options.skipped, what) == options.skipped.end();
  };
  Result<std::vector<LoadTrace>> traces;
  if (wanted("replay")) traces = traces_of(options, seed);  // before what takes long
  if (!traces) return std::unexpected(traces.error());
  for (const LoadKind kind : {LoadKind::kBare, LoadKind::kThroughput})
    if (const auto done = no_drop_rate(kind, options, driver, all); !done) return done;
  if (wanted("replay")) {
    auto replayed = replay(options, *traces, driver);
    if (!replayed) return std::unexpected(replayed.error());
    all["replay"] = std::move(*replayed);
  }
  if (wanted("join")) {
    auto joined = joins(options, driver);
    if (!joined) return std::unexpected(joined.error());
    all["join"] = std::move(*joined);
  }
  return {};
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
  Json json{{"members", options.nb_members},
            {"seconds", options.seconds},
            {"tolerance", options.tolerance},
            {"mtu", port.mtu_bytes()}};
  auto done = run_all(options, seed, driver, json);
  json["kernel_drops"] = port.kernel_drops().value_or(0);
  json["bad_control_frames"] = driver.nb_bad();
  json["foreign_frames"] = driver.nb_foreign();
  if (!done)
    json["error"] = fmt::format("{}: {}", done.error().what, rte_strerror(done.error().errnum));
  fmt::print("{}\n", json.dump());
  return done;
}

}  // namespace snowfabric::bench
