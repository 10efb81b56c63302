// SPDX-License-Identifier: BSD-3-Clause
#include "tools/fabric_sim_plan.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "descriptor/page_list.hpp"
#include "fabric/base/frame_number.hpp"
#include "tools/svg_plot.hpp"
#include "tools/text_file.hpp"

namespace snowfabric::sim {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

using Traces = std::vector<std::vector<std::uint64_t>>;

/// One answer.
struct Row {
  std::uint64_t nb_clones;
  PlanResult result;
  double took_s;  ///< to find it
};

Nanos micros(double us) { return Nanos{static_cast<std::int64_t>(us * 1000)}; }

/// What of the server is asked for.
ServerConfig server_of(const PlanOptions& options) {
  ServerConfig server;
  server.report_interval = micros(options.report_ms * 1000);
  if (options.window_us > 0)
    server.initial_window = server.min_window = server.max_window = micros(options.window_us);
  server.flow.rule = kFlowRules.at(options.flow_rule);
  server.end_game = {.enter = options.end_game,
                     .leave = std::min(server.end_game.leave, options.end_game)};
  return server;
}

/// The pages of ranges, each where it stands first.
std::vector<std::uint64_t> pages_of(std::span<const PageRange> ranges, std::uint64_t nb_pages) {
  std::vector<std::uint64_t> pages;
  std::vector<bool> has(nb_pages);
  for (const PageRange& range : ranges)
    for (std::uint64_t p = range.first.value; p < range.first.value + range.nb_pages; ++p) {
      if (!has[p]) pages.push_back(p);
      has[p] = true;
    }
  return pages;
}

Result<Traces> read_traces(const PlanOptions& options) {
  const std::uint64_t nb_pages = options.image_bytes / kPageSize;
  Traces traces;
  for (const std::string& path : options.traces) {
    const auto ranges = read_page_list(path, nb_pages);
    if (!ranges) return std::unexpected(ranges.error());
    if (ranges->empty()) return fail(EINVAL, fmt::format("{}: no page stands in it", path));
    traces.push_back(pages_of(*ranges, nb_pages));
  }
  return traces;
}

PlanConfig config_of(const PlanOptions& options, const Traces& traces, std::uint64_t nb_clones) {
  return {
      .nb_clones = nb_clones,
      .nb_pages = options.image_bytes / kPageSize,
      .zero_share = options.zero_percent / 100,
      .bytes_per_s = options.gbps * 1e9 / 8,
      .start_bytes_per_s = options.rate_gbps * 1e9 / 8,
      .nb_slow = std::min(options.nb_slow, nb_clones),
      .slow_bytes_per_s = options.slow_gbps * 1e9 / 8,
      .tagged = options.tagged,
      .burst_bytes = options.burst_bytes,
      .loss = options.loss_percent / 100,
      .loss_at = options.loss_at,
      .push = !options.no_push,
      .push_bytes_per_s = options.push_gbps * 1e9 / 8,
      .mtu_bytes = static_cast<std::uint16_t>(options.mtu_bytes),
      .touched = options.touched_percent / 100,
      .overlap = options.overlap_percent / 100,
      .traces = traces,
      .prefetch = options.prefetch,
      .think = micros(options.think_us),
      .fault = micros(options.fault_us),
      .per_frame = micros(options.frame_us),
      .link_delay = micros(options.delay_us),
      .queue_bytes = options.queue_bytes,
      .seed = options.seed,
      .server = server_of(options),
      .rto = {.initial = micros(options.rto_ms * 1000), .min = micros(options.rto_min_ms * 1000)}};
}

/// By the number of clones. @return EFBIG: a trace is of one image, which is too large to be run
Result<std::vector<PlanConfig>> configs_of(const PlanOptions& options) {
  const auto traces = read_traces(options);
  if (!traces) return std::unexpected(traces.error());
  std::vector<PlanConfig> configs;
  for (const std::uint64_t nb_clones : std::set(options.clones.begin(), options.clones.end())) {
    configs.push_back(config_of(options, *traces, nb_clones));
    const std::uint64_t most_pages = most_pages_run(configs.back());
    if (!traces->empty() && configs.back().nb_pages > most_pages)
      return fail(EFBIG,
                  fmt::format("{}: for {} clones give an image of at most {} MiB",
                              options.traces.front(), nb_clones, most_pages * kPageSize >> 20U));
  }
  return configs;
}

Row answer(const PlanConfig& config, const std::atomic<bool>& stop) {
  const bool shows = isatty(STDERR_FILENO) != 0;
  const auto began = Clock::now();
  auto next_show = began;
  const auto progress = [&](double share) {
    if (shows && Clock::now() >= next_show) {
      next_show = Clock::now() + std::chrono::milliseconds{200};
      fmt::print(stderr, "\rfabric-sim: {} clones, {:.0f} % ", config.nb_clones, 100 * share);
    }
    return !stop;
  };
  Row row{config.nb_clones, plan(config, progress), 0};
  if (shows) fmt::print(stderr, "\r\x1b[K");
  row.took_s = std::chrono::duration<double>(Clock::now() - began).count();
  return row;
}

double image_ratio(const Row& row) {
  return row.result.wire_bytes / static_cast<double>(row.result.nb_pages * kPageSize);
}

Json to_json(const PlanOptions& options, const Row& row) {
  const PlanResult& result = row.result;
  return {{"clones", row.nb_clones},
          {"image_bytes", options.image_bytes},
          {"gbps", options.gbps},
          {"rate_gbps", options.rate_gbps},
          {"slow", options.nb_slow},
          {"slow_gbps", options.slow_gbps},
          {"burst_bytes", options.burst_bytes},
          {"delay_us", options.delay_us},
          {"queue_bytes", options.queue_bytes},
          {"loss_percent", options.loss_percent},
          {"loss_at", options.loss_at == LossAt::kUplink ? "uplink" : "receivers"},
          {"zero_percent", options.zero_percent},
          {"touched_percent", options.touched_percent},
          {"overlap_percent", options.overlap_percent},
          {"traces", options.traces},
          {"prefetch", options.prefetch},
          {"think_us", options.think_us},
          {"fault_us", options.fault_us},
          {"frame_us", options.frame_us},
          {"mtu", options.mtu_bytes},
          {"push", !options.no_push},
          {"push_gbps", options.push_gbps},
          {"flow_rule", options.flow_rule},
          {"tagged", options.tagged == Tagged::kSlow ? "slow" : "fast"},
          {"window_us", options.window_us},
          {"rto_ms", options.rto_ms},
          {"rto_min_ms", options.rto_min_ms},
          {"report_ms", options.report_ms},
          {"end_game", options.end_game},
          {"seed", options.seed},
          {"finished", result.finished()},
          {"seconds", result.done_at(1)},
          {"seconds_p50", result.done_at(0.5)},
          {"seconds_p99", result.done_at(0.99)},
          {"seconds_slow", result.slow_done_s},
          {"longest_wait_s", result.longest_wait_s},
          {"wire_bytes", result.wire_bytes},
          {"wire_to_image_ratio", image_ratio(row)},
          {"request_bytes", result.request_bytes},
          {"request_frames", result.request_frames},
          {"server_ring_drops", result.server_ring_drops},
          {"pages_multicast", result.pages_multicast},
          {"pages_unicast", result.pages_unicast},
          {"wants", result.wants},
          {"wants_retried", result.retries},
          {"lockstep_hits", result.lockstep_hits},
          {"ring_drops", result.ring_drops},
          {"queue_drops", result.queue_drops},
          {"pages_run", result.nb_pages_run},
          {"extrapolated", result.is_extrapolated()},
          {"from_start_up", result.from_start_up},
          {"took_s", row.took_s}};
}

void show(const PlanOptions& options, const std::vector<Row>& rows) {
  fmt::print(
      "image of {:.0f} MiB, links of {} Gbit/s, {} % of the frames lost {}\n\n"
      "clones   half done   99 % done    all done   server sends   x image   is asked for   "
      "unicast   run in\n",
      static_cast<double>(options.image_bytes) / (1 << 20U), options.gbps, options.loss_percent,
      options.loss_at == LossAt::kUplink ? "on the uplink" : "at each receiver");
  for (const Row& row : rows) {
    const PlanResult& r = row.result;
    fmt::print(
        "{:>6} {:>9.3f} s {:>9.3f} s {:>9.3f} s {:>11.1f} MB {:>9.2f} {:>11.1f} MB {:>8.1f} % "
        "{:>6.1f} s{}{}\n",
        row.nb_clones, r.done_at(0.5), r.done_at(0.99), r.done_at(1), r.wire_bytes / 1e6,
        image_ratio(row), r.request_bytes / 1e6,
        100 * r.pages_unicast / std::max(1.0, r.pages_unicast + r.pages_multicast), row.took_s,
        !r.is_extrapolated() ? "" : fmt::format("  from {} MiB", r.nb_pages_run * kPageSize >> 20U),
        r.finished() ? "" : "  NOT ALL DONE");
  }
  if (std::ranges::any_of(rows, [](const Row& row) { return row.result.from_start_up; }))
    fmt::print(
        "\nToo many clones, or too fast a link, for an image that goes on when the server knows of "
        "losses:\nbytes and requests of a larger one are only roughly so (docs/simulator.md)\n");
}

/// Of the rows whose clones were all done. @return an empty text: of none
std::string plot(const PlanOptions& options, const std::vector<Row>& rows) {
  Series half{"half", {}}, nearly{"99 %", {}}, all{"all", {}}, sent{"server sends", {}},
      asked{"requests", {}};
  for (const Row& row : rows) {
    if (!row.result.finished()) continue;
    const auto x = static_cast<double>(row.nb_clones);
    half.points.emplace_back(x, row.result.done_at(0.5));
    nearly.points.emplace_back(x, row.result.done_at(0.99));
    all.points.emplace_back(x, row.result.done_at(1));
    sent.points.emplace_back(x, image_ratio(row));
    asked.points.emplace_back(x,
                              row.result.request_bytes / static_cast<double>(options.image_bytes));
  }
  if (all.points.empty()) return {};
  return svg_plot("clones", {{"seconds until clones are done", {half, nearly, all}},
                             {"bytes, in images", {sent, asked}}});
}

}  // namespace

int plan_command(const PlanOptions& options, const std::atomic<bool>& stop) {
  if (options.image_bytes % kPageSize != 0) {
    fmt::print(stderr, "fabric-sim: --image-bytes {}: give a multiple of {}\n", options.image_bytes,
               kPageSize);
    return 2;
  }
  if (!can_write("fabric-sim", options.json) || !can_write("fabric-sim", options.svg)) return 2;
  const auto configs = configs_of(options);
  if (!configs) {
    fmt::print(stderr, "fabric-sim: --trace {}\n", configs.error().what);
    return 2;
  }
  std::vector<Row> rows;
  Json json = Json::array();
  for (const PlanConfig& config : *configs) {
    rows.push_back(answer(config, stop));
    if (stop) rows.pop_back();  // it is not to its end
    if (stop) break;
    json.push_back(to_json(options, rows.back()));
  }
  if (rows.empty()) return 130;
  show(options, rows);
  const bool written =
      write_text("fabric-sim", options.json,
                 (rows.size() == 1 ? json.front() : json).dump(2) + "\n") &&
      (options.svg.empty() || write_text("fabric-sim", options.svg, plot(options, rows)));
  if (!written) return 2;
  if (stop) return 130;
  return std::ranges::all_of(rows, [](const Row& row) { return row.result.finished(); }) ? 0 : 1;
}

}  // namespace snowfabric::sim
