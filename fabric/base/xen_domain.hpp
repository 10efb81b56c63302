// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "fabric/base/frame_number.hpp"

/// What a Xen domain is apart from its pages: taken and set by xen-glue/, written by descriptor/.
namespace snowfabric::xen {

/// Source: xc_domain_get_tsc_info of xenctrl.h.
struct TscInfo {
  std::uint32_t mode = 0;
  std::uint64_t elapsed_ns = 0;
  std::uint32_t khz = 0;
  std::uint32_t incarnation = 0;
  bool operator==(const TscInfo&) const = default;
};

/// What of a suspended domain is no page of its RAM, but for what any shell of that size has.
struct DomainState {
  std::vector<std::byte> context;  ///< HVM save record
  TscInfo tsc;
  std::uint32_t nb_vcpus = 0;
  /// Pages that a clone must have before it runs; ascending. Linux registers its vcpu_info in its
  /// per-CPU data, and when a clone does so again Xen does not ask the pager for the page.
  std::vector<Gfn> eager;
  std::uint64_t target_kib = 0;  ///< how much memory its balloon was told to have
  /// Pages in which the guest's agent shares a bitmap with its host; a clone has its own there.
  std::optional<PageRange> bitmap{};
  bool operator==(const DomainState&) const = default;
};

}  // namespace snowfabric::xen
