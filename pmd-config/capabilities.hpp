// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <linux/capability.h>

namespace snowfabric {

/// A set of Linux capabilities, as /proc/PID/status has it: CAP_KILL is bit CAP_KILL.
using Capabilities = std::uint64_t;
[[nodiscard]] constexpr Capabilities capability(unsigned number) noexcept {
  return Capabilities{1} << number;
}

/// Those that a process may need after its start, and what profiles call them.
inline constexpr std::array<std::pair<std::string_view, Capabilities>, 5> kCapabilityNames{{
    {"kill", capability(CAP_KILL)},
    {"net_admin", capability(CAP_NET_ADMIN)},
    {"net_raw", capability(CAP_NET_RAW)},
    {"ipc_lock", capability(CAP_IPC_LOCK)},
    {"bpf", capability(CAP_BPF)},
}};

/// "kill, ipc_lock"; "none"
[[nodiscard]] inline std::string to_string(Capabilities set) {
  std::string names;
  for (const auto& [name, bit] : kCapabilityNames)
    if ((set & bit) != 0) names.append(names.empty() ? "" : ", ").append(name);
  return names.empty() ? "none" : names;
}

}  // namespace snowfabric
