// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>

#include "fabric/idle.hpp"
#include "memtap-dpdk/worker.hpp"
#include "pmd-config/telemetry.hpp"
#include "tools/bench_guest.hpp"

namespace snowfabric::bench {

/// How a client comes by its pages.
enum class Mode : std::uint8_t {
  kList,    ///< it asks for all of them as a prefetch list
  kFaults,  ///< its guest faults them, many vCPUs at once
  kPush,    ///< it asks for none that the server, which pushes, sends in time
};
[[nodiscard]] std::optional<Mode> parse_mode(std::string_view text) noexcept;

struct FetchConfig {
  ClientConfig engine{};
  Mode mode = Mode::kList;
  double timeout_s = 60;
  Seal* seal = nullptr;  ///< of the frames; nullptr: they go in the clear
};

/// What a fetch came to.
struct Fetched {
  bool complete = false;
  std::uint64_t nb_pages = 0;
  double seconds = 0;  ///< from the first question (kPush: from HELLO) to the last page installed
  Snapshot counters;   ///< of worker, engine and host
};

/// Fetches a whole image into the arena through memtap's own engine, host and worker, on the
/// calling lcore. Ends when every page is in, when interrupted, or after the time-out.
[[nodiscard]] Fetched fetch(const FetchConfig& config, const Port& port, Arena& arena,
                            const IdleConfig& idle, const std::atomic<bool>& interrupted);

/// One counter of a snapshot; 0 if it has none of that name.
[[nodiscard]] std::uint64_t counter(const Snapshot& snapshot, std::string_view name) noexcept;

}  // namespace snowfabric::bench
