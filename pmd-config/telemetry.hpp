// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fabric/stats.hpp"

namespace snowfabric {

/// Counters by name at one moment, in their documented order.
using Snapshot = std::vector<std::pair<std::string, std::uint64_t>>;

template <class Stats, std::size_t N>
void append(Snapshot& out, const Stats& stats, const std::array<CounterInfo<Stats>, N>& infos) {
  for (const auto& info : infos) out.emplace_back(info.name, (stats.*info.member).read());
}
void append(Snapshot& out, const DropCounters& drops);

/// DPDK telemetry commands of this process. Commands answer from the telemetry thread until the
/// object is destroyed, with an error afterwards: DPDK 22.11 cannot take one back.
class Telemetry {
 public:
  /// Called by the telemetry thread. @param params  what followed the comma in the request
  /// @return nullopt: no such object
  using Reader = std::function<std::optional<Snapshot>(std::string_view params)>;

  Telemetry() = default;
  Telemetry(const Telemetry&) = delete;
  Telemetry& operator=(const Telemetry&) = delete;
  ~Telemetry();

  /// Main lcore, after EAL init. @param command  "/memserver/stats" @param help  one line
  void publish(const std::string& command, const std::string& help, Reader reader);
};

}  // namespace snowfabric
