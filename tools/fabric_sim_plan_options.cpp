// SPDX-License-Identifier: BSD-3-Clause
#include <map>
#include <string>

#include "tools/fabric_sim_plan.hpp"

namespace snowfabric::sim {
namespace {

/// Links, and what goes wrong on them.
void add_link_options(CLI::App* plan, PlanOptions& options) {
  plan->add_option("--gbps", options.gbps, "of every link, Gbit/s")
      ->check(CLI::Range(0.001, 800.0))
      ->capture_default_str();
  plan->add_option(
          "--burst", options.burst_bytes,
          "bytes that a link passes at once after a pause, as virtual networks are shaped; "
          "0: a wire")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 30U))
      ->capture_default_str();
  plan->add_option("--delay-us", options.delay_us,
                   "that a frame is on a link; between server and clone are two")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  plan->add_option("--queue-bytes", options.queue_bytes,
                   "that wait before a link; what comes then is lost")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 30U))
      ->capture_default_str();
  plan->add_option("--loss", options.loss_percent, "percent of the frames")
      ->check(CLI::Range(0.0, 50.0))
      ->capture_default_str();
  plan->add_option("--loss-at", options.loss_at,
                   "each receiver loses its own, or the server's uplink loses them for all")
      ->transform(CLI::CheckedTransformer(std::map<std::string, LossAt>{
          {"receivers", LossAt::kReceivers}, {"uplink", LossAt::kUplink}}));
  plan->add_option("--mtu", options.mtu_bytes, "of the links")
      ->check(CLI::Range(1500, 9000))
      ->capture_default_str();
  plan->add_option("--slow", options.nb_slow, "so many of the clones have slower links")
      ->capture_default_str();
  plan->add_option("--slow-gbps", options.slow_gbps, "of those")
      ->check(CLI::Range(0.001, 800.0))
      ->capture_default_str();
}

/// What clones touch, and how long all takes.
void add_clone_options(CLI::App* plan, PlanOptions& options) {
  plan->add_option("--zero", options.zero_percent, "percent of the pages that are zero")
      ->check(CLI::Range(0.0, 80.0))
      ->capture_default_str();
  auto* touch = plan->add_option("--touch", options.touched_percent,
                                 "percent of the pages that a clone touches, one behind the other")
                    ->check(CLI::Range(0.0, 100.0))
                    ->capture_default_str();
  auto* overlap = plan->add_option("--overlap", options.overlap_percent,
                                   "percent of them that all clones touch first, in the same order")
                      ->check(CLI::Range(0.0, 100.0))
                      ->capture_default_str();
  plan->add_option("--trace", options.traces,
                   "file of the pages that a clone touches instead, in their order, as memtap's "
                   "--record writes it; may be repeated: clones take them in turns")
      ->allow_extra_args(false)
      ->excludes(touch)
      ->excludes(overlap);
  plan->add_option("--prefetch", options.prefetch,
                   "neighbours that memtap asks for with a fault, at most, as its own --prefetch")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  plan->add_option("--think-us", options.think_us, "of a clone between two touches")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  plan->add_option("--fault-us", options.fault_us,
                   "of a page that it has to wait for, beside the network: trap, memtap, wake")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  plan->add_option("--frame-us", options.frame_us, "that a host takes for a frame")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
}

/// The protocol's own figures.
void add_protocol_options(CLI::App* plan, PlanOptions& options) {
  auto* no_push =
      plan->add_flag("--no-push", options.no_push, "the server sends only what is asked for");
  plan->add_option("--push-gbps", options.push_gbps,
                   "that the server sends unasked, at most; 0: all that its rate leaves")
      ->check(CLI::Range(0.0, 800.0))
      ->excludes(no_push)
      ->capture_default_str();
  plan->add_option("--rate-gbps", options.rate_gbps,
                   "the server's rate before the first reports; 0: that of its link")
      ->check(CLI::Range(0.0, 800.0))
      ->capture_default_str();
  plan->add_option("--flow-rule", options.flow_rule,
                   "how the server's rate follows what the receivers can take: the mean of all by "
                   "their demand, or each with equal weight; the slowest's; the fastest's; the "
                   "slowest's of those that are tagged")
      ->check(CLI::IsMember(kFlowRules))
      ->capture_default_str();
  plan->add_option("--tagged", options.tagged,
                   "with --flow-rule tagged: which clones are, those with --slow links or the "
                   "others; default: fast")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Tagged>{{"fast", Tagged::kFast}, {"slow", Tagged::kSlow}}));
  plan->add_option("--window-us", options.window_us, "the lockstep window; 0: as it is measured")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  plan->add_option("--rto-ms", options.rto_ms, "a memtap's time-out before the first answer")
      ->check(CLI::Range(0.1, 500.0))
      ->capture_default_str();
  plan->add_option("--rto-min-ms", options.rto_min_ms, "the least of its time-outs")
      ->check(CLI::Range(0.01, 500.0))
      ->capture_default_str();
  plan->add_option("--report-ms", options.report_ms, "between two reports of a memtap")
      ->check(CLI::Range(1.0, 5000.0))
      ->capture_default_str();
  plan->add_option("--end-game", options.end_game,
                   "share of the image after which answers go by unicast; above 1: never")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
}

}  // namespace

CLI::App* add_plan_command(CLI::App& cli, PlanOptions& options) {
  CLI::App* plan = cli.add_subcommand(
      "plan", "so many clones, this image, this link: how long, and how many bytes?");
  plan->add_option("--clones", options.clones,
                   "how many, each on a host of its own; several numbers, by commas, are a table")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  plan->add_option("--image-bytes", options.image_bytes, "of the image; 1G is 2^30")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::uint64_t{kPageSize}, std::uint64_t{1} << 40U))
      ->capture_default_str();
  add_link_options(plan, options);
  add_clone_options(plan, options);
  add_protocol_options(plan, options);
  plan->add_option("--seed", options.seed, "of all that is random")->capture_default_str();
  plan->add_option("--json", options.json,
                   "write the answer there: an object, or an array of them");
  plan->add_option("--svg", options.svg, "draw time and bytes by the number of clones there");
  return plan;
}

}  // namespace snowfabric::sim
