// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/domain_pager.hpp"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{4};
constexpr std::uint32_t kNbVcpus = 12;

class DomainPagerTest : public testing::Test {
 protected:
  FakeXen xen;
  FakeDomain& guest = xen.add(kDom, 64, kNbVcpus);
  Domain domain{xen, kDom};
  alignas(kPageSize) std::byte bytes[kPageSize] = {std::byte{5}};

  /// As sf-xen-clone and memtap do, one after the other.
  std::unique_ptr<DomainPager> evicted() {
    {
      const auto shell = DomainPager::enable(domain);
      EXPECT_TRUE(shell) << shell.error().what;
      std::vector<Gfn> kept;
      EXPECT_TRUE((*shell)->evict({Gfn{0}, 64}, kept));
    }
    auto pager = DomainPager::enable(domain);
    EXPECT_TRUE(pager) << pager.error().what;
    EXPECT_EQ(xen.unpause(kDom), 0);
    return std::move(*pager);
  }
  /// @pre the domain is paused, and its pager dead
  void expect_that_the_next_pager_frees_all() {
    const auto pager = DomainPager::take_over(domain);
    ASSERT_TRUE(pager) << pager.error().what;
    ASSERT_EQ(xen.unpause(kDom), 0);
    for (std::uint64_t i = 0; i < 64; ++i) ASSERT_EQ((*pager)->load(Gfn{i}, bytes), 0);
    guest.run();
    EXPECT_FALSE(guest.anybody_waits());
  }
  static bool readable(const DomainPager& pager) {
    pollfd ready{pager.fd(), POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
  }
};

TEST_F(DomainPagerTest, AFaultIsHeardLoadedAndAnswered) {
  const auto pager = evicted();
  EXPECT_FALSE(readable(*pager));
  EXPECT_FALSE(guest.touch(0, Gfn{7}));
  EXPECT_TRUE(readable(*pager));
  pager->acknowledge();
  EXPECT_FALSE(readable(*pager));
  DomainPager::Fault fault;
  ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
  EXPECT_EQ(fault.request.page, Gfn{7});
  EXPECT_FALSE(fault.repeated);
  EXPECT_TRUE(pager->waits(Gfn{7}));
  ASSERT_EQ(pager->load(Gfn{7}, bytes), 0);
  EXPECT_EQ(pager->answer(Gfn{7}), 1U);
  EXPECT_TRUE(guest.vcpu_waits(0));  // until Xen is told
  pager->notify();
  EXPECT_FALSE(guest.anybody_waits());
  EXPECT_FALSE(pager->waits(Gfn{7}));
  EXPECT_EQ(guest.page(Gfn{7})[0], std::byte{5});
}

TEST_F(DomainPagerTest, EverybodyWhoWaitsForAPageIsAnsweredAtOnce) {
  const auto pager = evicted();
  guest.touch(0, Gfn{7});
  for (std::uint32_t vcpu = 1; vcpu < 4; ++vcpu) guest.touch_for(vcpu, Gfn{7});
  DomainPager::Fault fault;
  for (std::uint32_t vcpu = 0; vcpu < 4; ++vcpu) {
    ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
    EXPECT_EQ(fault.repeated, vcpu > 0);
  }
  ASSERT_EQ(pager->load(Gfn{7}, bytes), 0);
  EXPECT_EQ(pager->answer(Gfn{7}), 4U);
  pager->notify();
  EXPECT_FALSE(guest.anybody_waits());
}

TEST_F(DomainPagerTest, MoreFaultsThanSlotsAreServedInTurn) {
  const auto pager = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  std::size_t nb_served = 0;
  for (DomainPager::Fault fault; guest.anybody_waits(); ++nb_served) {
    ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
    ASSERT_EQ(pager->load(fault.request.page, bytes), 0);
    pager->answer(fault.request.page);
    pager->notify();
  }
  EXPECT_EQ(nb_served, kNbVcpus);
}

TEST_F(DomainPagerTest, TheEndLeavesNobodyWaitingWhenAllPagesAreIn) {
  auto pager = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  DomainPager::Fault fault;
  ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);  // one taken, seven not, four blocked
  for (std::uint64_t i = 0; i < 64; ++i) ASSERT_EQ(pager->load(Gfn{i}, bytes), 0);
  pager.reset();
  EXPECT_EQ(guest.nb_pauses, 0U);
  EXPECT_FALSE(guest.anybody_waits());
  EXPECT_FALSE(guest.crashed);
}

TEST_F(DomainPagerTest, TheEndOfAPausedDomainsPagingLetsThoseOutThatWaitedForRoom) {
  auto pager = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  for (std::uint64_t i = 0; i < 64; ++i) ASSERT_EQ(pager->load(Gfn{i}, bytes), 0);
  ASSERT_EQ(xen.pause(kDom), 0);  // by its user
  pager.reset();
  EXPECT_EQ(guest.nb_pauses, 1U);
  EXPECT_TRUE(DomainPager::enable(domain)) << "the ring is gone";
  ASSERT_EQ(xen.unpause(kDom), 0);
  guest.run();
  EXPECT_FALSE(guest.anybody_waits());
  EXPECT_FALSE(guest.crashed);
}

TEST_F(DomainPagerTest, ThePagingOfADomainThatXenSaysNothingOfStays) {
  auto pager = evicted();
  guest.touch(0, Gfn{0});
  xen.fail(Call::kInfo, EPERM);
  pager.reset();
  EXPECT_EQ(guest.nb_pauses, 0U);
  EXPECT_TRUE(guest.vcpu_waits(0)) << "nothing was answered";
  ASSERT_EQ(xen.pause(kDom), 0);
  expect_that_the_next_pager_frees_all();
}

TEST_F(DomainPagerTest, TheEndPausesADomainThatLacksPagesAndTheNextHearsOfAllThatWereAskedFor) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  auto pager = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  DomainPager::Fault fault;
  for (int i = 0; i < 2; ++i) ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
  pager.reset();
  EXPECT_EQ(guest.nb_pauses, 1U);
  EXPECT_FALSE(guest.crashed);
  std::vector<Gfn> asked;
  ASSERT_TRUE(DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked));
  std::ranges::copy(PagingRing::left_asked(ring_page->page(0)), std::back_inserter(asked));
  std::ranges::sort(asked);
  EXPECT_EQ(asked, list_of({Gfn{0}, kNbVcpus}));
  expect_that_the_next_pager_frees_all();
}

TEST_F(DomainPagerTest, ADomainThatLacksPagesAndIsLetRunWithoutAPagerWaits) {
  auto pager = evicted();
  ASSERT_EQ(xen.pause(kDom), 0);
  pager.reset();
  ASSERT_EQ(xen.unpause(kDom), 0);  // by somebody who does not know
  guest.touch(0, Gfn{3});
  EXPECT_FALSE(guest.crashed);
  EXPECT_TRUE(guest.anybody_waits());
  ASSERT_EQ(xen.pause(kDom), 0);
  expect_that_the_next_pager_frees_all();
}

TEST_F(DomainPagerTest, ATakeOverLetsAVcpuGoOnThatXenStoppedSeveralTimes) {
  const auto killed = evicted();  // does nothing from here on
  guest.touch(3, Gfn{7});
  for (int i = 0; i < 3; ++i) guest.touch_for(3, Gfn{8});
  guest.touch(4, Gfn{9});
  DomainPager::Fault fault;
  ASSERT_EQ(killed->take(fault), PagingRing::Take::kRequest);
  ASSERT_EQ(xen.pause(kDom), 0);
  expect_that_the_next_pager_frees_all();
}

TEST_F(DomainPagerTest, AFullRingOfADeadPagerIsDrainedForTheNext) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  const auto killed = evicted();  // does nothing from here on
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  DomainPager::Fault fault;
  for (int i = 0; i < 2; ++i) ASSERT_EQ(killed->take(fault), PagingRing::Take::kRequest);
  EXPECT_EQ(xen.paging_disable(kDom), EBUSY);
  std::vector<Gfn> asked;
  const auto was_full = DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked);
  ASSERT_TRUE(was_full) << was_full.error().what;
  EXPECT_TRUE(*was_full);
  EXPECT_EQ(guest.nb_pauses, 1U);
  std::ranges::copy(PagingRing::left_asked(ring_page->page(0)), std::back_inserter(asked));
  std::ranges::sort(asked);
  EXPECT_EQ(asked, list_of({Gfn{0}, kNbVcpus}));
  expect_that_the_next_pager_frees_all();
}

TEST_F(DomainPagerTest, AFullRingOfADomainThatIsPausedIsDrainedToo) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  const auto killed = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  ASSERT_EQ(xen.pause(kDom), 0);  // as a memtap does that cannot get a page
  std::vector<Gfn> asked;
  const auto was_full = DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked);
  ASSERT_TRUE(was_full) << was_full.error().what;
  EXPECT_TRUE(*was_full);
  EXPECT_EQ(guest.nb_pauses, 1U);
  EXPECT_TRUE(DomainPager::take_over(domain));
}

TEST_F(DomainPagerTest, ItDoesNotMatterWhichOfSeveralRingsIsTheDeadPagers) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  alignas(kPageSize) std::array<std::byte, kPageSize> stale{};
  const auto killed = evicted();
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) guest.touch(vcpu, Gfn{vcpu});
  std::vector<Gfn> asked;
  const auto was_full = DomainPager::pause_drained(
      domain, std::array{ring_page->page(0), DomainPager::RingPage{stale}}, asked);
  ASSERT_TRUE(was_full) << was_full.error().what;
  EXPECT_TRUE(*was_full);
  EXPECT_EQ(asked.size(), kNbVcpus);
  EXPECT_TRUE(DomainPager::take_over(domain));
}

TEST_F(DomainPagerTest, ADomainWithoutARingIsPausedAndNeverRuns) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  std::vector<Gfn> asked;
  for (const unsigned nb_pauses : {0U, 1U}) {
    guest.nb_pauses = nb_pauses;
    const auto was_full = DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked);
    ASSERT_TRUE(was_full) << was_full.error().what;
    EXPECT_FALSE(*was_full);
    EXPECT_EQ(guest.nb_pauses, 1U);
  }
  EXPECT_EQ(asked, std::vector<Gfn>{});
}

TEST_F(DomainPagerTest, ADrainThatXenRefusesIsNamed) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  const auto killed = evicted();
  xen.fail(Call::kResumePaging, EPERM, 1);
  std::vector<Gfn> asked;
  const auto was_full = DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked);
  ASSERT_FALSE(was_full);
  EXPECT_EQ(was_full.error().what, "empty the paging ring of domain 4");
}

TEST_F(DomainPagerTest, ADomainThatAsksAllTheTimeIsGivenUp) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  const auto killed = evicted();
  xen.on_resume_paging = [this] {
    for (std::size_t i = 0; i < kRingSlots; ++i) guest.touch_for(0, Gfn{i});
  };
  std::vector<Gfn> asked;
  const auto was_full = DomainPager::pause_drained(domain, std::array{ring_page->page(0)}, asked);
  ASSERT_FALSE(was_full);
  EXPECT_EQ(was_full.error().errnum, ETIMEDOUT);
  EXPECT_EQ(guest.nb_pauses, 0U);
}

TEST_F(DomainPagerTest, ATakeOverSaysWhenTheDeadPagersRingWasFull) {
  xen.fail(Call::kDisable, EBUSY);
  const auto pager = DomainPager::take_over(domain);
  ASSERT_FALSE(pager);
  EXPECT_EQ(pager.error().errnum, EBUSY);
  EXPECT_EQ(pager.error().what,
            "end the paging, whose ring was full when its pager died, of domain 4");
}

TEST_F(DomainPagerTest, ADomainThatIsGoneEndsInPeace) {
  auto pager = evicted();
  guest.touch(0, Gfn{3});
  DomainPager::Fault fault;
  ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
  xen.remove(kDom);
  EXPECT_EQ(pager->load(Gfn{3}, bytes), ESRCH);
  pager.reset();
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(DomainPagerTest, PagesThatOthersReferToAreKept) {
  guest.referred = {Gfn{3}, Gfn{60}};
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager);
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({Gfn{0}, 64}, kept));
  EXPECT_EQ(kept, (std::vector{Gfn{3}, Gfn{60}}));
  EXPECT_EQ(guest.info.nb_paged_pages, 62U);
}

TEST_F(DomainPagerTest, ADropIsHeard) {
  const auto pager = evicted();
  guest.drop(Gfn{9});
  DomainPager::Fault fault;
  ASSERT_EQ(pager->take(fault), PagingRing::Take::kRequest);
  EXPECT_TRUE(fault.request.dropped());
  EXPECT_EQ(fault.request.page, Gfn{9});
}

TEST_F(DomainPagerTest, ARunningDomainIsRefused) {
  ASSERT_EQ(xen.unpause(kDom), 0);
  const auto pager = DomainPager::enable(domain);
  ASSERT_FALSE(pager);
  EXPECT_EQ(pager.error().errnum, EINVAL);
  EXPECT_EQ(pager.error().what, "paging of domain 4: it is not paused");
}

struct Failing {
  Call call;
  int errnum;
  const char* what;
};

class DomainPagerError : public DomainPagerTest, public testing::WithParamInterface<Failing> {};

TEST_P(DomainPagerError, NamesTheCallAndTheDomainAndLeavesNothingBehind) {
  xen.fail(GetParam().call, GetParam().errnum);
  const auto pager = DomainPager::enable(domain);
  ASSERT_FALSE(pager);
  EXPECT_EQ(pager.error().errnum, GetParam().errnum);
  EXPECT_EQ(pager.error().what, GetParam().what);
  EXPECT_EQ(xen.nb_mapped, 0U);
  EXPECT_EQ(guest.nb_pauses, 1U);
  EXPECT_TRUE(DomainPager::enable(domain));  // nothing of the first is in the way
}

INSTANTIATE_TEST_SUITE_P(
    EveryCall, DomainPagerError,
    testing::Values(Failing{Call::kInfo, EPERM, "info of domain 4"},
                    Failing{Call::kRingPage, EINVAL, "look up the paging ring of domain 4"},
                    Failing{Call::kEnable, ENOSYS, "enable memory paging of domain 4"},
                    Failing{Call::kBind, ENOSPC, "bind the paging event channel of domain 4"},
                    Failing{Call::kDepopulate, EBUSY,
                            "take away the paging ring of domain 4, gfn 0xfeff8"}));

TEST_F(DomainPagerTest, ARingThatIsGoneIsPopulatedAnew) {
  {
    ASSERT_TRUE(DomainPager::enable(domain));
  }
  xen.fail(Call::kPopulate, ENOMEM);
  const auto refused = DomainPager::enable(domain);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().what, "populate of domain 4, gfn 0xfeff8");
  EXPECT_TRUE(DomainPager::enable(domain));
}

TEST_F(DomainPagerTest, EvictionStopsAtAnErrorThatIsNoRefusal) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager);
  xen.fail(Call::kEvict, ENOMEM, 2);
  std::vector<Gfn> kept;
  const auto ok = (*pager)->evict({Gfn{0}, 64}, kept);
  ASSERT_FALSE(ok);
  EXPECT_EQ(ok.error().errnum, ENOMEM);
  EXPECT_EQ(ok.error().what, "evict a page of domain 4, gfn 0x2");
}

}  // namespace
}  // namespace snowfabric::xen::test
