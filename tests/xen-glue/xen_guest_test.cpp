// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/xen_guest.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"
#include "xen-glue/guest_bitmap_layout.h"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{4};
constexpr std::uint32_t kNbPages = 64;
constexpr ImageGeometry kImage{.image_id = 1, .nb_pages = kNbPages, .epoch = 1};

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

TEST_F(XenGuestTest, RunsAtOnceIfNothingIsEager) {
  const auto guest = adopt();
  EXPECT_TRUE(guest->started());
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(domain.info.nb_paged_pages, kNbPages);
}

TEST_F(XenGuestTest, ARunningDomainThatIsNoCloneRunsOn) {
  ASSERT_EQ(xen.unpause(kDom), 0);
  xen.fail(Call::kEnable, EBUSY);
  EXPECT_FALSE(try_adopt());
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(XenGuestTest, RunsOnceItsEagerPagesAreIn) {
  special.eager = {Gfn{3}, Gfn{9}, Gfn{40}};
  const auto guest = adopt();
  EXPECT_EQ(polled(*guest), (Pages{3, 9, 40}));
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_TRUE(guest->waits(Gfn{9}));
  EXPECT_EQ(install(*guest, 3, 10), Install::kDone);
  EXPECT_FALSE(guest->waits(Gfn{9}));
  EXPECT_FALSE(guest->started());
  EXPECT_EQ(domain.nb_pauses, 1U);
  EXPECT_EQ(install(*guest, 40), Install::kDone);
  EXPECT_TRUE(guest->started());
  EXPECT_EQ(domain.nb_pauses, 0U);
  for (const int page : {3, 12, 40})
    EXPECT_EQ(first_byte(static_cast<std::uint64_t>(page)), page + 1);
  EXPECT_EQ(xen.nb_mapped, 1U);  // the ring alone
}

TEST_F(XenGuestTest, AFaultIsReportedOnceAndAnsweredByTheInstall) {
  const auto guest = adopt();
  EXPECT_FALSE(domain.touch(0, Gfn{5}));
  for (std::uint32_t vcpu = 1; vcpu < 3; ++vcpu) domain.touch_for(vcpu, Gfn{5});
  EXPECT_EQ(polled(*guest), Pages{5});
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_TRUE(guest->waits(Gfn{5}));
  EXPECT_EQ(install(*guest, 4, 3), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(5), 6);
  EXPECT_EQ(guest->counters().faults.read(), 1U);
  EXPECT_EQ(guest->counters().faults_repeated.read(), 2U);
  EXPECT_EQ(guest->counters().installed_pages.read(), 3U);
}

TEST_F(XenGuestTest, MoreFaultsThanTheRingHoldsAreAllServed) {
  const auto guest = adopt();
  for (std::uint32_t vcpu = 0; vcpu < 12; ++vcpu) domain.touch(vcpu, Gfn{2 * vcpu});
  std::size_t nb_served = 0;
  for (Pages pages; !(pages = polled(*guest)).empty();)
    for (const auto page : pages) {
      EXPECT_EQ(install(*guest, page), Install::kDone);
      ++nb_served;
    }
  EXPECT_EQ(nb_served, 12U);
  EXPECT_FALSE(domain.anybody_waits());
}

TEST_F(XenGuestTest, AFaultThatLostTheRaceIsAnswered) {
  const auto guest = adopt();
  domain.touch(0, Gfn{5});
  EXPECT_EQ(install(*guest, 5), Install::kDone);  // before its request is taken
  EXPECT_TRUE(domain.anybody_waits());
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(guest->counters().faults_raced.read(), 1U);
}

TEST_F(XenGuestTest, APageTheGuestReplacedIsNotOverwritten) {
  const auto guest = adopt();
  domain.replace(Gfn{5});
  domain.page(Gfn{5})[0] = std::byte{0x99};
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  EXPECT_EQ(first_byte(5), 0x99);
  EXPECT_EQ(guest->presence().state(Gfn{5}), PageState::kPresent);
  EXPECT_EQ(guest->counters().eexist.read(), 1U);
}

TEST_F(XenGuestTest, APageTheGuestGaveBackIsNotFetched) {
  const auto guest = adopt();
  domain.drop(Gfn{5});
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_EQ(guest->presence().state(Gfn{5}), PageState::kClaimedByGuest);
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  EXPECT_EQ(guest->counters().removed_pages.read(), 1U);
  EXPECT_EQ(guest->counters().skipped_pages.read(), 1U);
}

TEST_F(XenGuestTest, ZerosAreLoaded) {
  const auto guest = adopt();
  domain.touch(0, Gfn{7});
  EXPECT_EQ(polled(*guest), Pages{7});
  EXPECT_EQ(guest->install_zeros({Gfn{6}, 4}), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(7), 0);
  EXPECT_EQ(guest->counters().zero_pages.read(), 4U);
}

TEST_F(XenGuestTest, WithoutMemoryThePageStaysAbsentAndIsPutLater) {
  const auto guest = adopt();
  domain.touch(0, Gfn{7});
  EXPECT_EQ(polled(*guest), Pages{7});
  xen.fail(Call::kLoad, ENOMEM, 1);
  EXPECT_EQ(install(*guest, 6, 2), Install::kNoMemory);
  EXPECT_TRUE(guest->waits(Gfn{7}));
  EXPECT_TRUE(guest->presence().absent(Gfn{7}));
  EXPECT_EQ(install(*guest, 6, 2), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
}

TEST_F(XenGuestTest, ARefusalIsATrouble) {
  const auto guest = adopt();
  xen.fail(Call::kLoad, EPERM);
  EXPECT_EQ(install(*guest, 6), Install::kFailed);
  EXPECT_EQ(guest->trouble(), "Xen refused to load a page");
  EXPECT_TRUE(guest->presence().absent(Gfn{6}));
}

TEST_F(XenGuestTest, APageThatCannotBeHadPausesTheDomain) {
  const auto guest = adopt();
  domain.touch(0, Gfn{7});
  domain.touch(1, Gfn{8});
  EXPECT_EQ(polled(*guest), (Pages{7, 8}));
  EXPECT_EQ(guest->fail(Gfn{7}), FailMeans::kPaused);
  EXPECT_EQ(guest->fail(Gfn{8}), FailMeans::kPaused);
  EXPECT_EQ(domain.nb_pauses, 1U);
  EXPECT_EQ(guest->counters().pauses.read(), 1U);
  EXPECT_EQ(xen.unpause(kDom), 0);  // somebody has cured it
  EXPECT_EQ(polled(*guest), (Pages{7, 8}));
  EXPECT_EQ(install(*guest, 7, 2), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(guest->fail(Gfn{7}), FailMeans::kNotNeeded);
}

TEST_F(XenGuestTest, ADomainThatDiesWithFaultsPendingIsGone) {
  const auto guest = adopt();
  domain.touch(0, Gfn{7});
  EXPECT_EQ(polled(*guest), Pages{7});
  xen.remove(kDom);
  EXPECT_EQ(install(*guest, 7), Install::kGone);
  EXPECT_TRUE(guest->gone());
  EXPECT_EQ(guest->fail(Gfn{7}), FailMeans::kGone);
  EXPECT_FALSE(guest->kill());
}

TEST_F(XenGuestTest, KillDestroysTheDomain) {
  const auto guest = adopt();
  EXPECT_TRUE(guest->kill());
  EXPECT_TRUE(guest->gone());
  EXPECT_EQ(xen.find(kDom), nullptr);
}

TEST_F(XenGuestTest, ACompleteCloneOutlivesItsMemtap) {
  auto guest = adopt();
  domain.touch(0, Gfn{7});
  EXPECT_EQ(install(*guest, 0, kNbPages), Install::kDone);
  guest.reset();
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_FALSE(domain.crashed);
}

TEST_F(XenGuestTest, AnIncompleteCloneStandsStillUntilTheNextMemtap) {
  auto guest = adopt();
  for (std::uint32_t vcpu = 0; vcpu < 12; ++vcpu) domain.touch(vcpu, Gfn{vcpu});
  EXPECT_EQ(polled(*guest).size(), 8U);
  EXPECT_EQ(install(*guest, 1), Install::kDone);
  guest.reset();
  EXPECT_EQ(domain.nb_pauses, 1U);
  EXPECT_FALSE(domain.crashed);
  auto next = try_adopt(true);
  ASSERT_TRUE(next) << next.error().what;
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(install(**next, 0, kNbPages), Install::kDone);
  polled(**next);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ((*next)->counters().eexist.read(), 1U);  // page 1 was there
}

TEST_F(XenGuestTest, TheNextMemtapFreesWhoWaitedForADeadOne) {
  special.eager = {Gfn{20}};
  const auto ring = DomainPager::map_ring_page(Domain{xen, kDom});  // as sf-xen-clone does
  ASSERT_TRUE(ring);
  const auto guest = adopt();  // does nothing from here on, as if killed
  polled(*guest);
  EXPECT_EQ(install(*guest, 20), Install::kDone);
  for (std::uint32_t vcpu = 0; vcpu < 12; ++vcpu) domain.touch(vcpu, Gfn{vcpu});
  EXPECT_EQ(polled(*guest).size(), 8U);
  auto asked = PagingRing::left_asked(ring->page(0));
  EXPECT_EQ(asked.size(), 8U);
  auto next = try_adopt(true, std::move(asked));
  ASSERT_TRUE(next) << next.error().what;
  // Of what is there nobody knows.
  EXPECT_EQ(polled(**next), (Pages{20, 0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_TRUE((*next)->waits(Gfn{7}));
  EXPECT_EQ(install(**next, 20), Install::kDone);
  EXPECT_TRUE((*next)->started());
  EXPECT_EQ(polled(**next), (Pages{8, 9, 10, 11}));  // these had found no room
  for (std::uint64_t page = 0; page < 12; ++page) EXPECT_EQ(install(**next, page), Install::kDone);
  EXPECT_FALSE((*next)->waits(Gfn{7}));
  domain.run();
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(XenGuestTest, ADomainThatIsPagedAlreadyIsRefused) {
  const auto guest = adopt();
  const auto second = try_adopt();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().errnum, EBUSY);
  EXPECT_EQ(second.error().what, "enable memory paging of domain 4");
}

TEST_F(XenGuestTest, WhatXenRefusesAtTheStartIsNamed) {
  evict();
  xen.fail(Call::kUnpause, EPERM);
  const auto refused = try_adopt();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().what, "Xen refused to let the clone run");
}

constexpr PageRange kBitmap{Gfn{kNbPages - 1}, 1};

class XenGuestWithAgent : public XenGuestTest {
 protected:
  XenGuestWithAgent() { special.bitmap = kBitmap; }
};

TEST_F(XenGuestWithAgent, BothFlipTheBitsThatAreInTheGuestsMemory) {
  std::memset(domain.page(kBitmap.first), 0xff, kPageSize);  // its parent's, which means nothing
  const auto guest = adopt();
  Presence bits = in_guest();
  EXPECT_TRUE(bits.absent(Gfn{5}));
  EXPECT_EQ(bits.state(kBitmap.first), PageState::kPresent);
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  EXPECT_EQ(bits.state(Gfn{5}), PageState::kPresent);
  EXPECT_TRUE(bits.claim(Gfn{6}, PageState::kClaimedByGuest));
  EXPECT_EQ(install(*guest, 6), Install::kDone);
  EXPECT_EQ(domain.p2m(Gfn{6}), FakeDomain::P2m::kEvicted);  // it wants no bytes of the image
  EXPECT_EQ(guest->counters().skipped_pages.read(), 1U);
}

TEST_F(XenGuestWithAgent, AFaultOnClaimedPagesIsAnsweredWithZerosForSomeOfThem) {
  const auto guest = adopt();
  Presence bits = in_guest();
  for (std::uint64_t i = 10; i < 40; ++i)
    ASSERT_TRUE(bits.claim(Gfn{i}, PageState::kClaimedByGuest));
  domain.touch(0, Gfn{12});
  EXPECT_TRUE(polled(*guest).empty());  // nothing to fetch
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(12), 0);
  EXPECT_EQ(bits.state(Gfn{11}), PageState::kClaimedByGuest);
  for (std::uint64_t i = 12; i < 28; ++i) EXPECT_EQ(bits.state(Gfn{i}), PageState::kPresent) << i;
  EXPECT_EQ(bits.state(Gfn{28}), PageState::kClaimedByGuest);
  EXPECT_EQ(guest->counters().claimed_zero_pages.read(), 16U);
  EXPECT_EQ(guest->counters().faults_zeroed.read(), 1U);
}

TEST_F(XenGuestWithAgent, AClaimedPageWithoutMemoryIsTriedAgain) {
  const auto guest = adopt();
  ASSERT_TRUE(in_guest().claim(Gfn{12}, PageState::kClaimedByGuest));
  domain.touch(0, Gfn{12});
  xen.fail(Call::kLoad, ENOMEM);
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_TRUE(domain.anybody_waits());
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(12), 0);
}

TEST_F(XenGuestWithAgent, APageThatWasClaimedAfterItsFaultReadsAsZeros) {
  const auto guest = adopt();
  domain.touch(0, Gfn{5});
  EXPECT_EQ(polled(*guest), Pages{5});
  ASSERT_TRUE(in_guest().claim(Gfn{5}, PageState::kClaimedByGuest));
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(5), 0);
}

TEST_F(XenGuestWithAgent, AGuestThatLiesOfItsPagesGetsZerosAndDoesNotFaultForEver) {
  const auto guest = adopt();
  Presence bits = in_guest();
  ASSERT_TRUE(bits.claim(Gfn{5}, PageState::kClaimedByMemtap));
  ASSERT_TRUE(bits.mark_present(Gfn{5}));
  domain.touch(0, Gfn{5});
  EXPECT_TRUE(polled(*guest).empty());
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(5), 0);
}

TEST_F(XenGuestWithAgent, AGuestThatClaimsInMemtapsNameIsNotFetchedForAgainAndAgain) {
  const auto guest = adopt();
  ASSERT_TRUE(in_guest().claim(Gfn{5}, PageState::kClaimedByMemtap));
  domain.touch(0, Gfn{5});
  EXPECT_EQ(polled(*guest), Pages{5});
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(5), 0);
}

TEST_F(XenGuestWithAgent, ACloneThatLacksOnlyWhatItClaimedOutlivesItsMemtap) {
  auto guest = adopt();
  ASSERT_TRUE(in_guest().claim(Gfn{6}, PageState::kClaimedByGuest));
  EXPECT_EQ(install(*guest, 0, kNbPages - 1), Install::kDone);
  EXPECT_EQ(guest->nb_missing(), 0U);
  guest.reset();
  EXPECT_EQ(domain.info.nb_paged_pages, 0U);
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(first_byte(6), 0);
}

TEST_F(XenGuestWithAgent, TheNextMemtapGoesByTheBits) {
  special.eager = {Gfn{20}};
  const auto guest = adopt();  // does nothing after this, as if killed
  EXPECT_EQ(install(*guest, 20), Install::kDone);
  EXPECT_EQ(install(*guest, 5), Install::kDone);
  Presence bits = in_guest();
  ASSERT_TRUE(bits.claim(Gfn{6}, PageState::kClaimedByGuest));
  ASSERT_TRUE(bits.claim(Gfn{7}, PageState::kClaimedByMemtap));  // and died
  const auto next = try_adopt(true);
  ASSERT_TRUE(next) << next.error().what;
  EXPECT_TRUE((*next)->started());  // what is eager is there
  EXPECT_EQ(bits.state(Gfn{5}), PageState::kPresent);
  EXPECT_EQ(bits.state(Gfn{6}), PageState::kClaimedByGuest);
  EXPECT_TRUE(bits.absent(Gfn{7}));
  EXPECT_EQ(install(**next, 5, 3), Install::kDone);
  EXPECT_EQ((*next)->counters().installed_pages.read(), 1U);
}

TEST_F(XenGuestWithAgent, TheNextMemtapGivesClaimedPagesThatWereAskedForTheirZeros) {
  const auto guest = adopt();  // does nothing after this, as if killed
  ASSERT_TRUE(in_guest().claim(Gfn{5}, PageState::kClaimedByGuest));
  domain.touch(0, Gfn{5});
  xen.fail(Call::kLoad, ENOMEM);
  const auto next = try_adopt(true, {Gfn{5}, Gfn{kNbPages + 7}});
  ASSERT_TRUE(next) << next.error().what;
  EXPECT_TRUE(polled(**next).empty());
  EXPECT_TRUE(polled(**next).empty());  // there is memory now
  domain.run();
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(first_byte(5), 0);
}

TEST_F(XenGuestWithAgent, ABitmapThatIsNotThereIsAnError) {
  evict();
  special.bitmap = PageRange{Gfn{3}, 1};  // evicted
  const auto refused = try_adopt();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().what, "map the bitmap of domain 4, gfn 0x3");
  special.bitmap = PageRange{Gfn{3}, 2};
  EXPECT_EQ(try_adopt().error().errnum, EINVAL);
}

}  // namespace
}  // namespace snowfabric::xen::test
