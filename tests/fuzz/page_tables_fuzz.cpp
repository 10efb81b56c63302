// SPDX-License-Identifier: BSD-3-Clause
// Any bytes as a Xen guest's RAM and control registers: the walk through its page tables ends, and
// reads nothing else.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "tests/fuzz/fuzz_file.hpp"
#include "xen-glue/page_tables.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace snowfabric;
  struct {
    xen::CpuRecord cpu;
    std::uint64_t address;
  } registers;
  if (size < sizeof registers) return 0;
  std::memcpy(&registers, data, sizeof registers);
  const std::span ram{data + sizeof registers, size - sizeof registers};
  unsigned nb_reads = 0;
  const auto read = [&](std::uint64_t at, std::span<std::byte> out) {
    ++nb_reads;
    // Each frame of the guest shows the same bytes, so that tables are found at any address.
    const std::size_t offset = at % kPageSize;
    if (offset > ram.size() || out.size() > ram.size() - offset) return false;
    std::memcpy(out.data(), ram.data() + offset, out.size());
    return true;
  };
  const auto page = xen::page_at(read, registers.cpu, registers.address);
  fuzz::check(nb_reads >= 1 && nb_reads <= 5);
  fuzz::check(!page || page->value < std::uint64_t{1} << 40U);
  return 0;
}
