// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/idle.hpp"
#include "pmd-config/port.hpp"
#include "tools/load_control.hpp"

/// A load generator for switches and NICs: many memtaps behind one port, a memserver behind
/// another, the device under test between them.
namespace snowfabric::bench {

struct LoadOptions {
  std::uint32_t nb_members = 100;
  double seconds = 2;
  double tolerance = 0;  ///< share that the worst receiver may lack
  double max_gbps = 100;
  std::vector<std::string> skipped;      ///< "replay", "join"
  std::vector<std::string> trace_paths;  ///< none: traces are drawn from the seed
  std::uint32_t nb_touched = 2048;       ///< pages of such a trace
  std::uint32_t nb_pages = 65536;        ///< of the image that they are drawn from
  unsigned nb_vcpus = 4;
  double timeout_s = 120;  ///< of a replay
  unsigned nb_joins = 20;
  double join_gbps = 0.1;  ///< pushed meanwhile
};

/// The server's end, until `stop`; says READY on standard output, and at the end what it did.
[[nodiscard]] Result<void> serve_load(const Port& port, const IdleConfig& idle, std::uint64_t seed,
                                      const std::atomic<bool>& stop);

/// The members' end: the limit of the device, the no-drop rate, a replay, joins; progress goes to
/// standard error, the result to standard output, as JSON. What was measured before a failure is
/// printed too, with `error`.
/// @return EINVAL: too many pages to touch; ENOTSUP: the port has no promiscuous mode; EAGAIN: no
///         rate was without loss; or as read_traces() or LoadDriver's
[[nodiscard]] Result<void> run_load(const LoadOptions& options, const Port& port,
                                    const IdleConfig& idle, std::uint64_t seed,
                                    const std::atomic<bool>& interrupted);

}  // namespace snowfabric::bench
