// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>
#include <cstring>

#include <gtest/gtest.h>

#include "tests/xen-glue/xen_guest_fixture.hpp"

namespace snowfabric::xen::test {
namespace {

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
  EXPECT_EQ(try_adopt(true).error().errnum, EINVAL);
}

}  // namespace
}  // namespace snowfabric::xen::test
