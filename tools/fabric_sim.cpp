// SPDX-License-Identifier: BSD-3-Clause
// fabric-sim: the fabric's own engines in virtual time, with everything going wrong that a seed
// says.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "fabric/base/parse_number.hpp"
#include "sim/run.hpp"
#include "tools/fabric_sim_plan.hpp"
#include "tools/text_file.hpp"

namespace snowfabric::sim {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

std::atomic<bool> stop_asked{false};

struct Seeds {
  std::uint64_t first = 1, last = 100;
};

/// "A:B", both included, or one.
std::optional<Seeds> parse_seeds(const std::string& text) {
  const auto colon = text.find(':');
  const auto first = parse_number(text.substr(0, colon), 10);
  const auto last = colon == std::string::npos ? first : parse_number(text.substr(colon + 1), 10);
  if (!first || !last || *first > *last || *last - *first == ~std::uint64_t{0}) return {};
  return Seeds{*first, *last};
}

struct Broken {
  std::uint64_t seed;
  Outcome outcome;
};

/// What a range of seeds came to.
struct Totals {
  std::uint64_t nb_seeds = 0, nb_broken = 0, nb_frames = 0, nb_failed_guests = 0;
  std::uint64_t least_kinds = kNbFaultKinds;  // of fault that began, in a seed
  Nanos longest_wait{0}, took{0};
  std::array<std::uint64_t, kNbFaultKinds> nb_with{};
  std::vector<Broken> broken;       // the first ones
  std::vector<std::uint64_t> tame;  // seeds with fewer kinds of fault than they should have

  void add(const Scenario& scenario, Outcome outcome) {
    constexpr std::size_t kMaxKept = 20;
    ++nb_seeds;
    nb_frames += outcome.nb_frames;
    nb_failed_guests += outcome.nb_failed_guests;
    longest_wait = std::max(longest_wait, outcome.longest_wait);
    took += outcome.took;
    least_kinds = std::min(least_kinds, outcome.nb_kinds_begun);
    for (std::size_t kind = 0; kind < kNbFaultKinds; ++kind)
      nb_with[kind] += scenario.has(static_cast<FaultKind>(kind)) ? 1 : 0;
    if (outcome.ok()) {
      if (outcome.nb_kinds_begun < kLeastKinds) tame.push_back(scenario.seed);
      return;
    }
    ++nb_broken;
    if (broken.size() < kMaxKept) broken.push_back({scenario.seed, std::move(outcome)});
  }
};

void show_progress(const Totals& totals, const Seeds& seeds, double seconds) {
  fmt::print(stderr, "\rfabric-sim: {} of {} seeds, {} broken, {:.0f} s ", totals.nb_seeds,
             seeds.last - seeds.first + 1, totals.nb_broken, seconds);
}

Totals run_seeds(const Seeds& seeds, bool goes_on) {
  Totals totals;
  const bool shows = isatty(STDERR_FILENO) != 0;
  const auto began = Clock::now();
  auto next_show = began;
  for (std::uint64_t i = 0; i <= seeds.last - seeds.first && !stop_asked; ++i) {
    const std::uint64_t seed = seeds.first + i;
    const Scenario scenario = Scenario::of_seed(seed);
    totals.add(scenario, run(scenario));
    if (totals.nb_broken != 0 && !goes_on) break;
    if (!shows || Clock::now() < next_show) continue;
    next_show = Clock::now() + std::chrono::milliseconds{200};
    show_progress(totals, seeds, std::chrono::duration<double>(Clock::now() - began).count());
  }
  if (shows) fmt::print(stderr, "\r\x1b[K");
  return totals;
}

Json to_json(const Totals& totals, double seconds) {
  Json kinds = Json::object();
  for (std::size_t kind = 0; kind < kNbFaultKinds; ++kind)
    kinds[std::string{kFaultNames[kind]}] = totals.nb_with[kind];
  Json broken = Json::array();
  for (const Broken& one : totals.broken)
    broken.push_back({{"seed", one.seed}, {"what", one.outcome.broken}});
  return {{"seeds", totals.nb_seeds},
          {"broken", totals.nb_broken},
          {"broken_seeds", std::move(broken)},
          {"seeds_with", std::move(kinds)},
          {"least_kinds_begun", totals.nb_seeds == 0 ? 0 : totals.least_kinds},
          {"tame_seeds", totals.tame},
          {"interrupted", stop_asked.load()},
          {"frames", totals.nb_frames},
          {"failed_guests", totals.nb_failed_guests},
          {"longest_wait_us", to_micros(totals.longest_wait)},
          {"virtual_s", std::chrono::duration<double>(totals.took).count()},
          {"seconds", seconds}};
}

int run_command(const std::string& text, bool goes_on, const std::string& json_path) {
  const auto seeds = parse_seeds(text);
  if (!seeds) {
    fmt::print(stderr,
               "fabric-sim: --seeds {}: give FIRST:LAST, the last not below the first, or "
               "one number\n",
               text);
    return 2;
  }
  if (!can_write("fabric-sim", json_path)) return 2;
  const auto began = Clock::now();
  const Totals totals = run_seeds(*seeds, goes_on);
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  for (const Broken& one : totals.broken) {
    fmt::print("seed {}:\n", one.seed);
    for (const std::string& what : one.outcome.broken) fmt::print("  {}\n", what);
    fmt::print("  again, with a trace: fabric-sim replay {}\n", one.seed);
  }
  for (const std::uint64_t seed : totals.tame)
    fmt::print(
        "seed {}: fewer than {} kinds of fault began while its clones waited: it proves too "
        "little\n",
        seed, kLeastKinds);
  fmt::print(
      "{} seeds in {:.1f} s, {} broken; {} frames, {:.0f} s of virtual time; longest wait for "
      "a page {} us; {} clones told that a page cannot be had\n",
      totals.nb_seeds, seconds, totals.nb_broken, totals.nb_frames,
      std::chrono::duration<double>(totals.took).count(), to_micros(totals.longest_wait),
      totals.nb_failed_guests);
  if (!write_text("fabric-sim", json_path, to_json(totals, seconds).dump(2) + "\n")) return 2;
  if (stop_asked) return 130;
  return totals.nb_broken == 0 && totals.tame.empty() ? 0 : 1;
}

int replay(const std::string& text, bool shrinks, bool shows_frames) {
  const auto seed = parse_number(text, 10);
  if (!seed) {
    fmt::print(stderr, "fabric-sim: {}: a seed is a number\n", text);
    return 2;
  }
  Scenario scenario = Scenario::of_seed(*seed);
  fmt::print("{}", to_string(scenario));
  Outcome outcome = run(scenario);
  if (!outcome.ok() && shrinks) {
    for (const std::string& what : outcome.broken) fmt::print("broken: {}\n", what);
    scenario = shrink(scenario);
    fmt::print("shrunk to\n{}", to_string(scenario));
  }
  const auto show = [](Nanos now, const std::string& what) {
    fmt::print("{:>12} us  {}\n", to_micros(now), what);
  };
  outcome = run(scenario, show, shows_frames);
  for (const std::string& what : outcome.broken) fmt::print("BROKEN: {}\n", what);
  fmt::print("{} after {} us: {} frames, longest wait for a page {} us\n",
             outcome.ok() ? "nothing is broken" : "broken", to_micros(outcome.took),
             outcome.nb_frames, to_micros(outcome.longest_wait));
  return outcome.ok() ? 0 : 1;
}

/// A seed makes and drops the memory of a dozen hosts: kept, it is the next one's without a fault.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
}

}  // namespace
}  // namespace snowfabric::sim

int main(int argc, char** argv) {
  using namespace snowfabric;
  sim::keep_freed_memory();
  CLI::App cli{"The fabric's own engines in virtual time.", "fabric-sim"};
  cli.set_version_flag("--version", SNOWFABRIC_VERSION);
  cli.require_subcommand(1);
  std::string seeds = "1:100", json;
  bool goes_on = false, no_shrink = false, frames = false;
  std::string seed;
  CLI::App* run = cli.add_subcommand(
      "run", "runs seeds of mixed faults; status 1: something broke, or too few kinds began");
  run->add_option("--seeds", seeds, "FIRST:LAST")->capture_default_str();
  run->add_flag("--keep-going", goes_on, "also after a seed that breaks something");
  run->add_option("--json", json, "write the result there");
  CLI::App* replay =
      cli.add_subcommand("replay", "runs one seed, shrunk if it breaks, with a trace");
  replay->add_option("SEED", seed)->required();
  replay->add_flag("--no-shrink", no_shrink, "the whole of it");
  replay->add_flag("--frames", frames, "show each frame, and what becomes of it");
  sim::PlanOptions plan_options;
  const CLI::App* plan = sim::add_plan_command(cli, plan_options);
  CLI11_PARSE(cli, argc, argv);
  struct sigaction action{};
  action.sa_handler = [](int) { sim::stop_asked = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second ends it in the middle of a seed
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  if (*plan) return sim::plan_command(plan_options, sim::stop_asked);
  return *run ? sim::run_command(seeds, goes_on, json) : sim::replay(seed, !no_shrink, frames);
}
