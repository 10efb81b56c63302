// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>

#include <gtest/gtest.h>

#include "tests/xen-glue/xen_guest_fixture.hpp"

namespace snowfabric::xen::test {
namespace {

TEST_F(XenGuestTest, RunsAtOnceIfNothingIsEager) {
  const auto guest = adopt();
  EXPECT_TRUE(guest->started());
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(domain.info.nb_paged_pages, kNbPages);
}

TEST_F(XenGuestTest, ARunningDomainThatIsNoCloneRunsOnAsItWas) {
  special.bitmap = PageRange{Gfn{60}, 2};
  std::memset(domain.page(Gfn{60}), 7, kPageSize);
  ASSERT_EQ(xen.unpause(kDom), 0);
  const auto refused = try_adopt();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errnum, EBUSY);
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(xen.paging_resume(kDom), ENODEV);
  EXPECT_EQ(first_byte(60), 7);
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
  const auto ring = DomainPager::map_ring_page(Domain{xen, kDom});  // as sf-xen-clone does
  ASSERT_TRUE(ring);
  auto guest = adopt();
  for (std::uint32_t vcpu = 0; vcpu < 12; ++vcpu) domain.touch(vcpu, Gfn{vcpu});
  EXPECT_EQ(polled(*guest).size(), 8U);
  EXPECT_EQ(install(*guest, 1), Install::kDone);
  guest.reset();
  EXPECT_EQ(domain.nb_pauses, 1U);
  EXPECT_FALSE(domain.crashed);
  std::vector<Gfn> asked;
  ASSERT_TRUE(DomainPager::pause_drained(Domain{xen, kDom}, std::array{ring->page(0)}, asked));
  std::ranges::copy(PagingRing::left_asked(ring->page(0)), std::back_inserter(asked));
  auto next = try_adopt(true, std::move(asked));
  ASSERT_TRUE(next) << next.error().what;
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_EQ(install(**next, 0, kNbPages), Install::kDone);
  polled(**next);
  domain.run();
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
  std::vector<Gfn> asked;
  const auto drained =
      DomainPager::pause_drained(Domain{xen, kDom}, std::array{ring->page(0)}, asked);
  ASSERT_TRUE(drained) << drained.error().what;
  EXPECT_EQ(asked.size(), 4U);  // these had found no room
  std::ranges::copy(PagingRing::left_asked(ring->page(0)), std::back_inserter(asked));
  std::ranges::sort(asked);
  auto next = try_adopt(true, std::move(asked));
  ASSERT_TRUE(next) << next.error().what;
  // Of what is there nobody knows.
  EXPECT_EQ(polled(**next), (Pages{20, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  EXPECT_TRUE((*next)->waits(Gfn{7}));
  EXPECT_EQ(install(**next, 20), Install::kDone);
  EXPECT_TRUE((*next)->started());
  for (std::uint64_t page = 0; page < 12; ++page) EXPECT_EQ(install(**next, page), Install::kDone);
  EXPECT_FALSE((*next)->waits(Gfn{7}));
  domain.run();
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(XenGuestTest, ADomainThatIsPagedAlreadyIsRefused) {
  const auto guest = adopt();
  ASSERT_EQ(xen.pause(kDom), 0);
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

}  // namespace
}  // namespace snowfabric::xen::test
