// SPDX-License-Identifier: BSD-3-Clause
// A paging ring whose page changes as the fuzzer likes between the pager's calls: never more is
// owed than there are slots, what is answered was taken, and a dead pager's ring can be emptied.
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "tests/fuzz/fuzz_file.hpp"
#include "xen-glue/paging_ring.hpp"

namespace {

using namespace snowfabric;
using namespace snowfabric::xen;
using fuzz::check;

/// Takes the input apart.
struct Input {
  std::span<const std::uint8_t> rest;
  std::uint8_t byte() {
    if (rest.empty()) return 0;
    const std::uint8_t first = rest.front();
    rest = rest.subspan(1);
    return first;
  }
};

/// A well-formed request in the next slot, as Xen puts it.
void ask(std::span<std::byte, kPageSize> page, Input& in) {
  std::uint32_t asked = 0;
  std::memcpy(&asked, page.data(), sizeof asked);
  const RingSlot slot{.version = kVmEventVersion,
                      .flags = in.byte() % 4U,
                      .reason = kVmEventPaging,
                      .vcpu = in.byte(),
                      .reserved = 0,
                      .gfn = in.byte(),
                      .p2m_type = 10,
                      .paging_flags = in.byte() % 2U,
                      .unused = {}};
  std::memcpy(page.data() + kRingSlotsAt + asked % kRingSlots * kRingSlotBytes, &slot, sizeof slot);
  ++asked;
  std::memcpy(page.data(), &asked, sizeof asked);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in{{data, size}};
  alignas(kPageSize) std::array<std::byte, kPageSize> page{};
  PagingRing ring{page};
  std::vector<PagingRequest> owed;
  bool broken = false;
  while (!in.rest.empty()) {
    switch (in.byte() % 6) {
      case 0: ask(page, in); break;
      case 1: {
        const std::size_t at = (in.byte() * 256U + in.byte()) % kPageSize;
        page[at] = std::byte{in.byte()};
        break;
      }
      case 2: {
        PagingRequest request;
        const auto took = ring.take(request);
        check(!broken || took == PagingRing::Take::kBroken);
        broken = took == PagingRing::Take::kBroken;
        if (took == PagingRing::Take::kRequest) owed.push_back(request);
        break;
      }
      case 3:
        if (owed.empty()) break;
        ring.answer(owed.back(), in.byte() % 2 == 0);
        owed.pop_back();
        break;
      case 4: {
        [[maybe_unused]] const bool published = ring.publish();
        break;
      }
      case 5:
        check(PagingRing::left_asked(page).size() <= 2 * kRingSlots);
        break;  // noted, and not taken yet
    }
    check(owed.size() <= kRingSlots && ring.nb_unanswered() == owed.size());
  }
  std::vector<Gfn> asked;
  check(PagingRing::drain(page, asked) <= kRingSlots);
  return 0;
}
