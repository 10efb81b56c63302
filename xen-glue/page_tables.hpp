// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "fabric/base/frame_number.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen {

/// Whether its page tables are those that page_at() reads.
[[nodiscard]] bool is_64_bit(const CpuRecord& cpu) noexcept;

/// Reads RAM as it was when the vCPU stood, from a byte of it on. @return false: no such RAM
using ReadRam = std::function<bool(std::uint64_t at, std::span<std::byte> out)>;

/// The page behind an address of a vCPU, by its page tables, of four or five levels.
/// @return nothing: nothing is mapped there, or the tables leave RAM, which may hold any bytes
[[nodiscard]] std::optional<Gfn> page_at(const ReadRam& read, const CpuRecord& cpu,
                                         std::uint64_t address);

}  // namespace snowfabric::xen
