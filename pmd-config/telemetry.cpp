// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/telemetry.hpp"

#include <rte_telemetry.h>

#include <map>
#include <mutex>

namespace snowfabric {
namespace {

// DPDK's callback carries no pointer of ours, hence the one global: command -> reader.
struct Registry {
  std::mutex mutex;
  std::map<std::string, Telemetry::Reader, std::less<>> readers;
};
Registry& registry() {
  static Registry the_registry;
  return the_registry;
}

int answer(const char* command, const char* params, rte_tel_data* out) {
  const std::scoped_lock lock{registry().mutex};
  const auto it = registry().readers.find(std::string_view{command});
  if (it == registry().readers.end()) return -1;
  const auto snapshot = it->second(params == nullptr ? std::string_view{} : params);
  if (!snapshot) return -1;
  rte_tel_data_start_dict(out);
  for (const auto& [name, value] : *snapshot) rte_tel_data_add_dict_u64(out, name.c_str(), value);
  return 0;
}

}  // namespace

void append(Snapshot& out, const DropCounters& drops) {
  for (std::size_t i = 1; i < kNbDrops; ++i)
    out.emplace_back("rx_drop_" + std::string{wire::kDropNames[i]}, drops.by_reason[i].read());
}

Telemetry::~Telemetry() {
  const std::scoped_lock lock{registry().mutex};
  registry().readers.clear();
}

void Telemetry::publish(const std::string& command, const std::string& help, Reader reader) {
  {
    const std::scoped_lock lock{registry().mutex};
    registry().readers[command] = std::move(reader);
  }
  rte_telemetry_register_cmd(command.c_str(), answer, help.c_str());
}

}  // namespace snowfabric
