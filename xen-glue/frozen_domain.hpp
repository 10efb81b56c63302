// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "xen-glue/domain.hpp"

namespace snowfabric::xen {

/// What of a suspended domain is no page of its RAM.
struct DomainState {
  std::vector<std::byte> context;  ///< HVM save record
  TscInfo tsc;
  /// Pages that a clone must have before it runs; ascending. Linux registers its vcpu_info in its
  /// per-CPU data, and when a clone does so again Xen does not ask the pager for the page.
  std::vector<Gfn> eager;
};

/// A parent domain's memory and state as they were at one instant.
struct FrozenDomain {
  UniqueFd memory;           ///< a memfd of all RAM, page by gfn, that nothing can write any more
  std::uint64_t nb_pages{};  ///< of RAM
  std::vector<Gfn> missing;  ///< pages the domain gave back: holes in `memory`; ascending
  DomainState state;
  std::chrono::microseconds pause{};  ///< from its suspend to its resume

  /// Asks the guest to suspend, copies RAM and state, and lets it go on, also if a copy fails. The
  /// guest stands still for all of it.
  /// @param timeout  for the guest to suspend
  /// @return ETIMEDOUT: it did not suspend; ENOTSUP: RAM that reaches the hole below 4 GiB; EINVAL:
  ///         not HVM or PVH, or xenstore does not say its size; or what a call reported
  [[nodiscard]] static Result<FrozenDomain> copy(Domain domain, std::chrono::milliseconds timeout);
};

}  // namespace snowfabric::xen
