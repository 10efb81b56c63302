// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/frozen_parent.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric {

struct XenFreezeOptions {
  std::string domain;          ///< its name or number
  std::uint64_t image_id = 0;  ///< not 0
  std::uint32_t epoch = 1;
  std::optional<xen::Keep> keep{};  ///< none: a copy, if this host has the memory for it
  std::optional<int> progress_fd{};
};

/// Freezes a running Xen domain of this host, in its dom0. Control path.
/// @return as xen::open_libxen, xen::find_domain and xen::FrozenDomain::take
[[nodiscard]] Result<FrozenParent> freeze_xen(const XenFreezeOptions& options,
                                              const std::atomic<bool>& stop);

}  // namespace snowfabric
