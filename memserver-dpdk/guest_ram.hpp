// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/qmp.hpp"

namespace snowfabric {

/// A run of frames of a guest's physical address space.
struct FrameRange {
  std::uint64_t first = 0;
  std::uint64_t nb_frames = 0;
  bool operator==(const FrameRange&) const = default;
};

/// Frames behind which QEMU has RAM: a PC has a hole for devices below 4 GiB, and what lies above
/// it continues the RAM block that ends below it.
struct RamSpan {
  FrameRange frames;
  std::string block;             ///< as in the migration stream: "pc.ram"
  std::uint64_t first_page = 0;  ///< of the block
  bool operator==(const RamSpan&) const = default;
};

/// The RAM in what the monitor command `info mtree -f` prints of the address space "memory"; lines
/// that say something else are passed over. Only whole pages.
/// Source: softmmu/memory.c of QEMU 7.2, mtree_print_flatview.
[[nodiscard]] std::vector<RamSpan> parse_flat_view(std::string_view text);

/// @return as Qmp::execute; EPROTO: QEMU speaks of no RAM
[[nodiscard]] Result<std::vector<RamSpan>> ask_ram_spans(Qmp& qmp);

}  // namespace snowfabric
