// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include "fabric/base/frame_number.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen::test {

/// Page tables as a 64-bit kernel has them, in pages that a test gives.
class PageTableBuilder {
 public:
  using Bytes = std::function<std::byte*(Gfn)>;

  /// @param bytes   those of a page
  /// @param tables  from this page on they are free to be tables
  PageTableBuilder(Bytes bytes, Gfn tables, unsigned nb_levels = 4)
      : bytes_{std::move(bytes)}, root_{tables}, next_{tables.value + 1}, nb_levels_{nb_levels} {}

  [[nodiscard]] CpuRecord cpu(std::uint64_t gs_base = 0) const {
    return {.cr3 = root_.value * kPageSize | 0x5,  // with a PCID
            .cr4 = nb_levels_ == 5 ? 1U << 12 : 0U,
            .efer = 1U << 10,
            .gs_base = gs_base};
  }
  /// @param level  of the entry that maps: 1: 4 KiB, 2: 2 MiB, 3: 1 GiB
  void map(std::uint64_t address, Gfn page, unsigned level = 1) {
    Gfn table = root_;
    for (unsigned at = nb_levels_; at > level; --at) table = below(table, address, at);
    set(table, address, level, page, level > 1 ? kPresent | kLarge : kPresent);
  }

 private:
  static constexpr std::uint64_t kPresent = 0x8000'0000'0000'0063, kLarge = 0x80;  // NX, too

  [[nodiscard]] std::byte* entry(Gfn table, std::uint64_t address, unsigned level) const {
    return bytes_(table) + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8;
  }
  void set(Gfn table, std::uint64_t address, unsigned level, Gfn page, std::uint64_t flags) {
    const std::uint64_t value = page.value * kPageSize | flags;
    std::memcpy(entry(table, address, level), &value, sizeof value);
  }
  Gfn below(Gfn table, std::uint64_t address, unsigned level) {
    std::uint64_t value = 0;
    std::memcpy(&value, entry(table, address, level), sizeof value);
    if (value != 0) return Gfn{(value & 0x000f'ffff'ffff'f000) / kPageSize};
    const Gfn made{next_++};
    set(table, address, level, made, kPresent);
    return made;
  }

  Bytes bytes_;
  Gfn root_;
  std::uint64_t next_;
  unsigned nb_levels_;
};

}  // namespace snowfabric::xen::test
