// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "memtap-dpdk/xen_guest.hpp"
#include "tests/xen-glue/fake_xen.hpp"
#include "xen-glue/guest_bitmap_layout.h"

namespace snowfabric::xen::test {

inline constexpr DomId kDom{4};
inline constexpr std::uint32_t kNbPages = 64;
inline constexpr ImageGeometry kImage{.image_id = 1, .nb_pages = kNbPages, .epoch = 1};

class XenGuestTest : public testing::Test {
 protected:
  FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages, 12);
  XenPages special;
  int nb_files = 0;
  std::array<Gfn, 32> faults;

  /// As sf-xen-clone does.
  void evict() {
    const auto pager = DomainPager::enable(Domain{xen, kDom});
    ASSERT_TRUE(pager) << pager.error().what;
    std::vector<Gfn> kept;
    const std::uint32_t nb_spared = special.bitmap ? special.bitmap->nb_pages : 0;  // at the end
    ASSERT_TRUE((*pager)->evict({Gfn{0}, kNbPages - nb_spared}, kept));
  }
  /// The guest's words of the bitmap.
  [[nodiscard]] Presence in_guest() {
    auto* words = reinterpret_cast<Presence::Word*>(domain.page(special.bitmap->first) +
                                                    SF_BITMAP_PRESENCE_AT);
    return {{words, Presence::words_for(kNbPages)}, kNbPages};
  }
  Result<std::unique_ptr<XenGuest>> try_adopt(bool recover = false, std::vector<Gfn> asked = {}) {
    auto file = PresenceFile::create(
        "/dev/shm/sf_xen_guest_" + std::to_string(getpid()) + "_" + std::to_string(nb_files++),
        kImage);
    EXPECT_TRUE(file) << file.error().what;
    return XenGuest::adopt(
        0, {.peer = {}, .domain = kDom, .image = "", .recover = recover, .asked = std::move(asked)},
        std::move(*file), xen, special);
  }
  std::unique_ptr<XenGuest> adopt() {
    evict();
    auto guest = try_adopt();
    EXPECT_TRUE(guest) << guest.error().what;
    return std::move(*guest);
  }
  /// The image: a page's first byte says which one it is.
  static std::vector<std::byte> image_of(std::uint64_t first, std::size_t nb_pages) {
    std::vector<std::byte> bytes(nb_pages * kPageSize + 1);
    for (std::size_t i = 0; i < nb_pages; ++i)
      bytes[i * kPageSize] = static_cast<std::byte>(first + i + 1);
    bytes.pop_back();
    return bytes;
  }
  static Install install(XenGuest& guest, std::uint64_t first, std::size_t nb_pages = 1) {
    return guest.install(Gfn{first}, image_of(first, nb_pages));
  }
  [[nodiscard]] int first_byte(std::uint64_t page) const {
    return std::to_integer<int>(domain.page(Gfn{page})[0]);
  }
  std::vector<std::uint64_t> polled(XenGuest& guest) {
    std::vector<std::uint64_t> pages;
    const std::size_t nb_faults = guest.poll_faults(faults);
    for (std::size_t i = 0; i < nb_faults; ++i) pages.push_back(faults[i].value);
    return pages;
  }
};

using Pages = std::vector<std::uint64_t>;

}  // namespace snowfabric::xen::test
