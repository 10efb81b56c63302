// SPDX-License-Identifier: BSD-3-Clause
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "fabric/base/frame_number.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/region_map.hpp"

/// Whatever a peer sends: no crash, and what is accepted keeps every promise of parse_handshake().
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace snowfabric;
  constexpr std::uint64_t kImageBytes = std::uint64_t{1} << 30U;
  const std::string_view message{reinterpret_cast<const char*>(data), size};

  ArrayScanner whole;
  ArrayScanner piecewise;
  const auto verdict = whole.feed(message);
  auto last = ArrayScanner::Verdict::kMore;
  for (std::size_t i = 0; i < size && last != ArrayScanner::Verdict::kGarbage; ++i)
    last = piecewise.feed(message.substr(i, 1));
  if (last != verdict) std::abort();

  if (const auto guest = guest_to_complete(message); guest && *guest <= 0) std::abort();
  if (const auto clone = xen_domain_of(message); clone && clone->domain == 0) std::abort();
  if (const auto qemu = qemu_request_of(message); qemu && qemu->recover && !qemu->image)
    std::abort();
  (void)handover_of(message);
  const auto regions = parse_handshake(message, kImageBytes);
  if (!regions) return 0;
  if (regions->empty() || regions->size() > kMaxRegions) std::abort();
  const RegionMap map{*regions};
  for (const Region& r : *regions) {
    if ((r.base | r.size | r.offset) % kPageSize != 0 || r.size == 0) std::abort();
    if (r.size > kImageBytes || r.offset > kImageBytes - r.size) std::abort();
    for (const std::uint64_t at : {std::uint64_t{0}, r.size - kPageSize}) {
      const auto page = map.page_at(r.base + at);
      if (page != Gfn{(r.offset + at) / kPageSize}) std::abort();
      if (map.locate(*page)->address != r.base + at) std::abort();
    }
  }
  return 0;
}
