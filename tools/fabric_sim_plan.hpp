// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "sim/plan.hpp"

namespace snowfabric::sim {

/// By the names that --flow-rule has for them.
inline const std::map<std::string, FlowRule> kFlowRules{{"mean", FlowRule::kMean},
                                                        {"equal", FlowRule::kEqual},
                                                        {"min", FlowRule::kMin},
                                                        {"max", FlowRule::kMax},
                                                        {"tagged", FlowRule::kTagged}};

/// What the user asks of `fabric-sim plan`.
struct PlanOptions {
  std::vector<std::uint64_t> clones{8};
  std::uint64_t image_bytes = std::uint64_t{1} << 30U;
  std::size_t burst_bytes = 0, queue_bytes = LinkConfig{}.queue_bytes;
  double gbps = 10, loss_percent = 0, zero_percent = 0, touched_percent = 100, overlap_percent = 0;
  double think_us = 10, fault_us = 0, frame_us = 1, delay_us = 10;
  double slow_gbps = 1, rate_gbps = 0, push_gbps = 0, window_us = 0, rto_ms = 20, rto_min_ms = 1,
         report_ms = 50;
  double end_game = EndGameConfig{}.enter;
  std::uint64_t nb_slow = 0;
  LossAt loss_at = LossAt::kReceivers;
  Tagged tagged = Tagged::kFast;
  unsigned mtu_bytes = 9000, prefetch = 16;
  std::uint64_t seed = 1;
  bool no_push = false;
  std::string flow_rule = "mean", json, svg;
  std::vector<std::string> traces;
};

/// @return the subcommand, which fills `options`; these must outlive the parsing
CLI::App* add_plan_command(CLI::App& cli, PlanOptions& options);

/// Answers, on stdout and in the files. @param stop  gives up once it is set
/// @return the exit status: 1: not all clones were done; 2: a file cannot be read, or written; 130:
///         stopped
int plan_command(const PlanOptions& options, const std::atomic<bool>& stop);

}  // namespace snowfabric::sim
