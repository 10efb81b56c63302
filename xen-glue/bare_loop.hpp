// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fabric/base/result.hpp"
#include "xen-glue/xen_calls.hpp"

/// What Xen's libraries do by themselves: the limits that the benchmark measures our code against.
namespace snowfabric::xen {

/// Maps, copies and unmaps the pages 0.. of a domain in bursts, by libxenforeignmemory alone.
/// @param out          room for as many pages
/// @return the time it took; or errno of a mapping
[[nodiscard]] Result<std::chrono::microseconds> bare_copy(DomId domain, std::span<std::byte> out,
                                                          std::size_t burst_pages);

}  // namespace snowfabric::xen
