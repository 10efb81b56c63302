// SPDX-License-Identifier: BSD-3-Clause
// A guest that announces its bitmap as it likes, and writes into it as it likes while its memtap
// works: nothing else of its memory is touched, and what is claimed is put there.
#include <algorithm>
#include <span>
#include <string>

#include "fabric/base/presence.hpp"
#include "tests/fuzz/fuzz_file.hpp"
#include "tests/xen-glue/fake_xen.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/guest_bitmap.hpp"

namespace {

using namespace snowfabric;
using namespace snowfabric::xen;
using fuzz::check;

constexpr DomId kDom{6};
constexpr std::uint64_t kPages = 512;
constexpr std::byte kUntouched{0x5a};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  test::FakeXen xen;
  test::FakeDomain& guest = xen.add(kDom, kPages);
  const Domain domain{xen, kDom};
  const std::size_t nb_text = std::min<std::size_t>(data[0] % 64, size - 2);
  xen.store["/local/domain/6/data/snowfabric/bitmap"] =
      (data[1] & 1U) != 0 ? std::string{reinterpret_cast<const char*>(data + 2), nb_text}
                          : std::to_string(data[1] * 2) + " 1 0";
  const std::span<const std::uint8_t> writes{data + 2 + nb_text, size - 2 - nb_text};
  const auto where = announced_bitmap(domain, kPages);
  if (!where) return 0;
  check(where->nb_pages != 0 && where->first.value + where->nb_pages <= kPages);
  for (std::uint64_t page = 0; page < kPages; ++page)  // what nobody may touch
    if (page < where->first.value || page >= where->first.value + where->nb_pages)
      guest.write(Gfn{page}, kUntouched);
  std::byte* const bytes = guest.page(where->first);
  const auto write = [&](std::size_t i) {
    bytes[(writes[i] * 256U + writes[i + 1]) % kPageSize] = std::byte{writes[i + 2]};
  };
  std::size_t i = 0;
  for (; i + 3 <= writes.size() / 2; i += 3) write(i);
  auto bitmap = (data[1] & 2U) != 0 ? GuestBitmap::reset(domain, *where, kPages)
                                    : GuestBitmap::take_over(domain, *where, kPages);
  if (!bitmap) return 0;
  Presence presence = bitmap->presence();
  check(presence.nb_pages() == kPages);
  for (; i + 3 <= writes.size(); i += 3) {
    write(i);
    const Gfn page{(writes[i] * 256U + writes[i + 2]) % kPages};
    if (!presence.claim(page, PageState::kClaimedByMemtap)) continue;
    check(presence.mark_present(page) && presence.state(page) == PageState::kPresent);
  }
  for (std::uint64_t page = 0; page < kPages; ++page)
    if (page < where->first.value || page >= where->first.value + where->nb_pages)
      check(*guest.page(Gfn{page}) == kUntouched);
  return 0;
}
