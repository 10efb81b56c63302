// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/page_tables.hpp"

namespace snowfabric::xen {
namespace {

// Source: AMD64 Architecture Programmer's Manual, volume 2, 5.3 "Long-Mode Page Translation".
constexpr std::uint64_t kLongModeActive = 1U << 10;  // EFER
constexpr std::uint64_t kFiveLevels = 1U << 12;      // CR4
constexpr std::uint64_t kPresent = 1U << 0, kLarge = 1U << 7;
constexpr std::uint64_t kFrameMask = 0x000f'ffff'ffff'f000;
constexpr unsigned kIndexBits = 9, kPageBits = 12;
constexpr unsigned kMaxLargeLevel = 3;  // 1 GiB

constexpr std::uint64_t low_bits(unsigned nb_bits) noexcept {
  return (std::uint64_t{1} << nb_bits) - 1;
}

}  // namespace

bool is_64_bit(const CpuRecord& cpu) noexcept { return (cpu.efer & kLongModeActive) != 0; }

std::optional<Gfn> page_at(const ReadRam& read, const CpuRecord& cpu, std::uint64_t address) {
  std::uint64_t table = cpu.cr3 & kFrameMask;
  for (unsigned level = (cpu.cr4 & kFiveLevels) != 0 ? 5 : 4;; --level) {
    const unsigned page_bits = kPageBits + kIndexBits * (level - 1);  // that an entry maps
    const std::uint64_t index = address >> page_bits & low_bits(kIndexBits);
    std::uint64_t entry = 0;
    if (!read(table + index * sizeof entry, std::as_writable_bytes(std::span{&entry, 1})))
      return {};
    if ((entry & kPresent) == 0) return {};
    const bool large = (entry & kLarge) != 0 && level <= kMaxLargeLevel;
    if (level > 1 && !large) {
      table = entry & kFrameMask;
      continue;
    }
    const std::uint64_t frame = entry & kFrameMask & ~low_bits(page_bits);
    return Gfn{(frame | (address & low_bits(page_bits))) >> kPageBits};
  }
}

}  // namespace snowfabric::xen
