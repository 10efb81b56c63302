// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "pmd-config/profile.hpp"

namespace snowfabric {

struct EalConfig {
  std::string program = "snowfabric";
  Profile profile;
  std::string iface;             ///< {iface}: interface, PCI address or socket file
  unsigned mtu = 0;              ///< what resolve_mtu() said
  std::string role = "client";   ///< {role}: "server" or "client"; net_memif needs one of each
  std::string lcores;            ///< for --lcores; empty: one lcore, see default_lcores()
  std::string file_prefix;       ///< empty: snowfabric-<pid>
  unsigned extra_memory_mb = 0;  ///< with --no-huge, beyond the port's mempool
  std::vector<std::string> extra_args;  ///< the user's own, after `--`; they win over ours
};

/// The command line for rte_eal_init: program name, ours, the user's. An option the user gave, in
/// any spelling, is not added by us. Pure but for the process id and the CPU mask.
/// @return EINVAL: {iface} is needed and missing, or contains a comma or a blank; unknown {word}
[[nodiscard]] Result<std::vector<std::string>> eal_args(const EalConfig& config);

/// One main lcore: floating over all CPUs the process may use, or, with busy polling, on the first.
[[nodiscard]] std::string default_lcores(IdleStrategy strategy);

/// Memory for --no-huge: the port's mempool, rings, and what EAL needs itself.
[[nodiscard]] unsigned no_huge_mb(const Profile& profile, unsigned mtu_bytes) noexcept;

/// The default of EalConfig::file_prefix.
[[nodiscard]] std::string default_file_prefix();

/// Whether the user's arguments name an option: "-m" matches "-m", "-m64"; "--vdev" matches
/// "--vdev", "--vdev=...".
[[nodiscard]] bool has_option(const std::vector<std::string>& args, std::string_view option);

}  // namespace snowfabric
