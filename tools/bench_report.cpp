// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_report.hpp"

#include <rte_cycles.h>

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace snowfabric::bench {
namespace {

struct Spread {
  double min = 0, median = 0, max = 0;
};

Spread spread_of(const std::vector<double>& values) {
  const auto [min, max] = std::ranges::minmax_element(values);
  return {*min, median(values), *max};
}

struct Summary {
  Spread bare, fabric, pair;  // pair: ratio of neighbours in time
  double ratio = 0;
};

Summary summary_of(const std::vector<Pair>& pairs) {
  std::vector<double> bare, fabric, ratios;
  for (const Pair& pair : pairs) {
    bare.push_back(pair.bare);
    fabric.push_back(pair.fabric);
    ratios.push_back(pair.fabric / pair.bare);
  }
  Summary out{spread_of(bare), spread_of(fabric), spread_of(ratios)};
  out.ratio = out.fabric.median / out.bare.median;
  return out;
}

/// What tells a healthy run from one that asked twice or was starved.
constexpr std::array kTelling{
    "retries",      "rx_duplicates",           "rx_lost",
    "tx_requests",  "server_tx_back_pressure", "server_tx_no_mbuf",
    "server_wants", "server_lockstep_hits",    "server_tx_pages_multicast",
    "bursts"};

using Json = nlohmann::ordered_json;

/// What every result has.
void add_figures(Json& json, const std::vector<Pair>& pairs) {
  const Summary s = summary_of(pairs);
  json["unit"] = "pages/s";
  json["rate"] = s.fabric.median;
  json["limit"] = s.bare.median;
  json["ratio"] = s.ratio;
  json["ratio_min"] = s.pair.min;
  json["ratio_max"] = s.pair.max;
  json["runs"] = Json::array();
  for (const Pair& pair : pairs)
    json["runs"].push_back({{"limit", pair.bare}, {"rate", pair.fabric}});
}

double cycles_per_page(double pages_per_s) {
  return static_cast<double>(rte_get_tsc_hz()) / pages_per_s;
}

/// The case that is the worst by its ratio.
template <class Result>
const Result& worst_of(const std::vector<Result>& results) {
  return *std::ranges::min_element(
      results, {}, [](const Result& result) { return summary_of(result.pairs).ratio; });
}

const char* name_of(Mode mode) {
  constexpr std::array kNames{"list", "faults", "push"};
  return kNames[static_cast<std::size_t>(mode)];
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 != 0 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::string ring_json(const RingOptions& options, std::uint64_t nb_pages, std::size_t nb_fragments,
                      const RingResult& result) {
  Json json{
      {"benchmark", "ring"},
      {"limited_by_flow_control", result.flow_limited},
      {"verified", true},  // run_ring() returns no result otherwise
      {"pages", nb_pages},
      {"mtu", options.bed.mtu},
      {"frames_per_page", nb_fragments},
      {"tx", std::string{to_string(options.tx)}},
      {"mode", name_of(options.mode)},
      {"sealed", options.sealed},
      {"hash_tree", options.hash_tree},
      {"max_rate_gbps", options.max_rate_gbps},
      {"hugepages", !options.bed.no_huge},
      {"seed", options.seed},
  };
  add_figures(json, result.pairs);
  for (const char* name : kTelling) json["last_run"][name] = counter(result.counters, name);
  return json.dump(2) + "\n";
}

std::string ring_table(const RingOptions& options, std::uint64_t nb_pages, std::size_t nb_fragments,
                       const RingResult& result) {
  const Summary s = summary_of(result.pairs);
  const auto row = [&](const char* name, const Spread& spread) {
    return fmt::format("{:8} {:>10.0f} {:>10.0f} {:>10.0f}   {:6.0f} ns a page\n", name, spread.min,
                       spread.median, spread.max, 1e9 / spread.median);
  };
  std::string out =
      fmt::format("ring: {} pages, MTU {} ({} frame(s) a page), TX {}, mode {}, {} runs\n",
                  nb_pages, options.bed.mtu, nb_fragments, to_string(options.tx),
                  name_of(options.mode), result.pairs.size());
  out += fmt::format("{:8} {:>10} {:>10} {:>10}\n", "pages/s", "min", "median", "max");
  out += row("bare", s.bare);
  out += row("fabric", s.fabric);
  out += fmt::format(
      "ratio    {:>10.3f} {:>10.3f} {:>10.3f}   (min and max: of runs next to each "
      "other)\n",
      s.pair.min, s.ratio, s.pair.max);
  if (result.flow_limited)
    out += "the flow control's rate was the limit: repeat with a higher --max-rate-gbps\n";
  return out;
}

std::string serve_json(const ServeOptions& options, const std::vector<ServeResult>& results) {
  Json json{{"benchmark", "serve"},
            {"worst", worst_of(results).what.name},
            {"verified", true},  // run_serve() returns no result otherwise
            {"pages", options.nb_pages},
            {"range_pages", options.range_pages},
            {"seconds", options.seconds},
            {"mtu", options.bed.mtu},
            {"hugepages", !options.bed.no_huge},
            {"seed", options.seed}};
  add_figures(json, worst_of(results).pairs);
  for (const ServeResult& result : results) {
    Json one{{"case", result.what.name},
             {"pages_per_want", result.what.nb_pages},
             {"tx", std::string{to_string(result.what.tx)}}};
    add_figures(one, result.pairs);
    one["tsc_cycles_per_page"] = cycles_per_page(one["rate"].get<double>());
    json["cases"].push_back(std::move(one));
  }
  return json.dump(2) + "\n";
}

std::string serve_table(const ServeOptions& options, const std::vector<ServeResult>& results) {
  std::string out =
      fmt::format("serve: one server lcore, {} pages in random order, MTU {}, {} runs of {} s\n",
                  options.nb_pages, options.bed.mtu, options.runs, options.seconds);
  out += fmt::format("{:24}{:>14}{:>14}{:>8}{:>16}{:>18}\n", "medians", "bare, page/s", "served",
                     "ratio", "(of neighbours)", "TSC cycles/page");
  for (const ServeResult& result : results) {
    const Summary s = summary_of(result.pairs);
    out += fmt::format("{:24}{:>14.0f}{:>14.0f}{:>8.3f}{:>9.2f} to {:.2f}{:>18.0f}\n",
                       result.what.name, s.bare.median, s.fabric.median, s.ratio, s.pair.min,
                       s.pair.max, cycles_per_page(s.fabric.median));
  }
  return out;
}

std::string install_json(const InstallOptions& options, const std::vector<InstallResult>& results) {
  Json json{{"benchmark", "install"},
            {"worst", worst_of(results).what.name},
            {"verified", true},  // run_install() returns no result otherwise
            {"pages", options.nb_pages},
            {"seed", options.seed}};
  add_figures(json, worst_of(results).pairs);
  for (const InstallResult& result : results) {
    Json one{{"case", result.what.name},
             {"neighbours", result.what.nb_pages},
             {"faulting_threads", result.what.nb_threads}};
    add_figures(one, result.pairs);
    one["copying"] = median(result.copying);
    json["cases"].push_back(std::move(one));
  }
  return json.dump(2) + "\n";
}

std::string install_table(const InstallOptions& options,
                          const std::vector<InstallResult>& results) {
  std::string out = fmt::format("install: UFFDIO_COPY of {} pages in random order, {} runs\n",
                                options.nb_pages, options.runs);
  out +=
      fmt::format("{:24}{:>16}{:>14}{:>14}{:>8}{:>16}{:>14}\n", "medians, pages/s", "ioctl alone",
                  "with CRC32C", "memtap", "ratio", "(of neighbours)", "to the ioctl");
  for (const InstallResult& result : results) {
    const Summary s = summary_of(result.pairs);
    const double copying = median(result.copying);
    out += fmt::format("{:24}{:>16.0f}{:>14.0f}{:>14.0f}{:>8.3f}{:>9.2f} to {:.2f}{:>14.3f}\n",
                       result.what.name, copying, s.bare.median, s.fabric.median, s.ratio,
                       s.pair.min, s.pair.max, s.fabric.median / copying);
  }
  return out;
}

}  // namespace snowfabric::bench
