// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/judge.hpp"
#include "sim/scenario.hpp"

namespace snowfabric::sim {

struct Outcome {
  std::uint64_t nb_broken = 0;
  Breach first{};                      ///< if any
  std::vector<std::string> broken{};   ///< the first of them, in words
  Nanos took{0};                       ///< virtual time until every clone was settled
  Nanos longest_wait{0};               ///< of a vCPU for a page
  std::uint64_t nb_frames = 0;         ///< that arrived somewhere
  std::uint64_t wire_bytes = 0;        ///< the server sent
  std::uint64_t nb_failed_guests = 0;  ///< were told that a page cannot be had
  std::uint64_t nb_kinds_begun = 0;    ///< of fault, before all clones were settled
  [[nodiscard]] bool ok() const noexcept { return nb_broken == 0; }
};

using Trace = std::function<void(Nanos, const std::string&)>;

/// Runs a scenario to its end, or to what is broken first. The same scenario has the same outcome,
/// always. What must hold: every page that a clone gets has the image's bytes, none is installed
/// twice or over the guest's own; every fault is answered, or failed where the server is dead,
/// within a bound; tables have what fits them, and nothing once nobody waits; every frame is
/// received or accounted for.
/// @param trace  told of what happens; of each frame, too, with `trace_frames`
[[nodiscard]] Outcome run(const Scenario& scenario, const Trace& trace = {},
                          bool trace_frames = false);

/// A smaller scenario that still breaks the same first. @pre run(scenario) does
[[nodiscard]] Scenario shrink(Scenario scenario);

}  // namespace snowfabric::sim
