// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <filesystem>

#include "fabric/base/result.hpp"
#include "pmd-config/eal_args.hpp"

namespace snowfabric {

/// DPDK's environment, once a process. Owns the runtime directory unless the user named the prefix.
class Eal {
 public:
  /// Calls rte_eal_init with eal_args(config). EAL sets the CPU mask of the calling thread and
  /// later threads inherit it: make TBB's arena and the log thread before.
  /// Also removes runtime directories that killed processes of ours left behind.
  /// @return EINVAL: bad configuration; EALREADY: second call in this process; else rte_errno
  [[nodiscard]] static Result<Eal> init(const EalConfig& config);

  Eal(Eal&& other) noexcept;
  Eal& operator=(Eal&& other) noexcept;
  Eal(const Eal&) = delete;
  Eal& operator=(const Eal&) = delete;
  /// Cleans EAL up; every Port must be gone by then.
  ~Eal();

  /// Where the telemetry socket is: dpdk_telemetry.v2 in this directory.
  [[nodiscard]] const std::filesystem::path& runtime_dir() const noexcept { return runtime_dir_; }

 private:
  Eal(std::filesystem::path runtime_dir, bool owns_dir) noexcept;
  void clean_up() noexcept;

  std::filesystem::path runtime_dir_;
  bool owns_dir_ = false;
  bool live_ = false;
};

}  // namespace snowfabric
