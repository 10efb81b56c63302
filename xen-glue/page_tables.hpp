// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>

#include "fabric/base/frame_number.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen {

/// Whether its page tables are those that page_at() reads.
[[nodiscard]] bool is_64_bit(const CpuRecord& cpu) noexcept;

/// The page behind an address of a vCPU that stands, by its page tables, of four or five levels.
/// @param memory  a file of all RAM as it was then, page by gfn; any bytes
/// @return nothing: nothing is mapped there, or the tables leave `memory`
[[nodiscard]] std::optional<Gfn> page_at(int memory, const CpuRecord& cpu,
                                         std::uint64_t address) noexcept;

}  // namespace snowfabric::xen
