// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/nominated_ram.hpp"

#include <array>
#include <cerrno>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"
#include "xen-glue/frozen_domain.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 128;
constexpr std::uint32_t kNbVcpus = 12;
using P2m = FakeDomain::P2m;

class NominatedRamTest : public testing::Test {
 protected:
  NominatedRamTest() {
    domain.nb_pauses = 0;
    for (std::uint64_t i = 0; i < kNbPages; ++i) domain.page(Gfn{i})[5] = std::byte{7};
  }
  [[nodiscard]] Result<std::unique_ptr<NominatedRam>> take(
      std::span<const std::uint64_t> free = {}) const {
    return NominatedRam::take(parent, kNbPages, {.free = free, .busy = busy, .enabled = {}});
  }
  [[nodiscard]] std::uint64_t count(P2m state) const {
    std::uint64_t nb = 0;
    for (std::uint64_t i = 0; i < kNbPages; ++i) nb += domain.p2m(Gfn{i}) == state ? 1 : 0;
    return nb;
  }
  static void answer_all(DomainPager& pager) {
    for (DomainPager::Fault fault; pager.take(fault) == PagingRing::Take::kRequest;)
      pager.answer(fault.request.page);
    pager.notify();
  }
  void expect_free() const {
    EXPECT_EQ(count(P2m::kRam), kNbPages);
    EXPECT_EQ(domain.nb_pauses, 0U);
    EXPECT_EQ(xen.nb_mapped, 0U);
  }

  std::vector<Gfn> busy;
  mutable FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages, kNbVcpus);
  Domain parent{xen, kDom};
};

TEST_F(NominatedRamTest, PagesStayWhereTheyAreAndWhoTouchesOneWaits) {
  const auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  EXPECT_EQ(count(P2m::kNominated), kNbPages);
  EXPECT_EQ(domain.nb_pauses, 0U);
  EXPECT_FALSE(domain.touch(1, Gfn{9}));
  EXPECT_EQ((*ram)->bytes()[9 * kPageSize + 5], std::byte{7});
  EXPECT_TRUE(domain.vcpu_waits(1));
  answer_all((*ram)->pager());
  EXPECT_FALSE(domain.vcpu_waits(1));
  EXPECT_EQ(domain.p2m(Gfn{9}), P2m::kRam);
}

TEST_F(NominatedRamTest, WhatXenRefusesIsCopiedAndWhatIsNotThereLeftOut) {
  domain.referred = {Gfn{3}, Gfn{64}};
  domain.drop(Gfn{10});
  const std::vector<std::uint64_t> free{std::uint64_t{3} << 20U, 0};
  const auto ram = take(free);
  ASSERT_TRUE(ram) << ram.error().what;
  const auto copies = (*ram)->take_copies();
  ASSERT_EQ(copies.size(), 2U);
  EXPECT_EQ(copies[0].page, Gfn{3});
  EXPECT_EQ(copies[1].bytes[5], std::byte{7});
  EXPECT_EQ((*ram)->left_out(), (std::vector{PageRange{Gfn{10}, 1}, PageRange{Gfn{20}, 2}}));
  EXPECT_TRUE(domain.touch(0, Gfn{20})) << "the guest waits for a page that nobody needs";
}

TEST_F(NominatedRamTest, BusyPagesAreCopiedAndTheDomainNeverWaitsForThem) {
  busy = {Gfn{8}, Gfn{9}};
  const auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  EXPECT_EQ((*ram)->take_copies().size(), 2U);
  EXPECT_TRUE(domain.touch(0, Gfn{9}));
}

TEST_F(NominatedRamTest, ItsEndGivesEveryPageBackAsItWas) {
  {
    const auto ram = take();
    ASSERT_TRUE(ram) << ram.error().what;
    EXPECT_FALSE(domain.touch(0, Gfn{5}));  // and nobody answers
  }
  expect_free();
  EXPECT_FALSE(domain.vcpu_waits(0));
  for (std::uint64_t i = 0; i < kNbPages; ++i) ASSERT_EQ(domain.page(Gfn{i})[5], std::byte{7});
}

TEST_F(NominatedRamTest, AGuestThatFillsTheRingGetsItsPagesAllTheSame) {
  const auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  for (std::uint64_t i = 0; i < kRingSlots; ++i) domain.touch_for(0, Gfn{i});
  EXPECT_EQ((*ram)->pager().set_free(std::array{Gfn{50}}), EAGAIN);
  EXPECT_EQ((*ram)->give_back({Gfn{50}, 10}, [](Gfn page) { return page == Gfn{55}; }), 0);
  for (std::uint64_t i = 50; i < 60; ++i)
    EXPECT_EQ(domain.p2m(Gfn{i}), i == 55 ? P2m::kNominated : P2m::kRam) << i;
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(NominatedRamTest, AFailureGivesBackWhatWasNominated) {
  for (const auto& [call, nb_good] : {std::pair{Call::kNominate, 50U},
                                      {Call::kMap, 1U},
                                      {Call::kEnable, 0U},
                                      {Call::kBind, 0U},
                                      {Call::kPause, 0U}}) {
    xen.fail(call, EIO, nb_good);
    const auto ram = take();
    ASSERT_FALSE(ram);
    EXPECT_EQ(ram.error().errnum, EIO);
    expect_free();
  }
}

TEST_F(NominatedRamTest, WhoDiedLeavesADomainThatCanBeSetFree) {
  auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  EXPECT_FALSE(domain.touch(0, Gfn{5}));
  DomainPager::Fault fault;
  ASSERT_EQ((*ram)->pager().take(fault), PagingRing::Take::kRequest);
  EXPECT_FALSE(domain.touch(1, Gfn{6}));
  const std::unique_ptr<NominatedRam> dead = std::move(*ram);  // as by SIGKILL
  ASSERT_TRUE(NominatedRam::give_back_all(parent, kNbPages, nullptr));
  EXPECT_EQ(count(P2m::kRam), kNbPages);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_FALSE(domain.crashed);
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(NominatedRamTest, WhoDiedWithAFullRingLeavesADomainThatCanBeSetFree) {
  const auto ring = DomainPager::map_ring_page(parent);
  ASSERT_TRUE(ring) << ring.error().what;
  auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  for (std::uint32_t vcpu = 0; vcpu < kNbVcpus; ++vcpu) EXPECT_FALSE(domain.touch(vcpu, Gfn{vcpu}));
  ASSERT_TRUE(domain.anybody_wants_room());
  const std::unique_ptr<NominatedRam> dead = std::move(*ram);  // as by SIGKILL
  const auto done = NominatedRam::give_back_all(parent, kNbPages, &*ring);
  ASSERT_TRUE(done) << done.error().what;
  EXPECT_EQ(count(P2m::kRam), kNbPages);
  EXPECT_FALSE(domain.anybody_waits());
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(NominatedRamTest, ADomainWhosePagesSomebodyElseHasEvictedIsLeftAlone) {
  ASSERT_TRUE(parent.pause());
  const auto pager = DomainPager::enable(parent);
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({Gfn{5}, 3}, kept));
  const auto done = NominatedRam::give_back_all(parent, kNbPages, nullptr);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().errnum, EBUSY);
  EXPECT_EQ(count(P2m::kEvicted), 3U);
}

TEST_F(NominatedRamTest, WhatWasPausedByOneThatIsDeadRunsAgain) {
  auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  ASSERT_TRUE(parent.pause());
  const std::unique_ptr<NominatedRam> dead = std::move(*ram);  // as by SIGKILL
  ASSERT_TRUE(give_back_in_place(parent, kNbPages, nullptr));
  EXPECT_EQ(count(P2m::kRam), kNbPages);
  EXPECT_EQ(domain.nb_pauses, 0U);
}

TEST_F(NominatedRamTest, ADomainThatIsGoneNeedsNothing) {
  const auto ram = take();
  ASSERT_TRUE(ram) << ram.error().what;
  xen.remove(kDom);
  EXPECT_EQ((*ram)->bytes()[9 * kPageSize + 5], std::byte{7});
}

}  // namespace
}  // namespace snowfabric::xen::test
