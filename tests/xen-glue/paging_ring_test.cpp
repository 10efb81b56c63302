// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/paging_ring.hpp"

#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace snowfabric::xen {
namespace {

class PagingRingTest : public testing::Test {
 protected:
  /// Xen's end of the ring.
  void ask(std::uint64_t gfn, std::uint32_t vcpu = 0) {
    const RingSlot request{.version = kVmEventVersion,
                           .flags = kVcpuPaused,
                           .reason = kVmEventPaging,
                           .vcpu = vcpu,
                           .reserved = 0,
                           .gfn = gfn,
                           .p2m_type = 10,
                           .paging_flags = 0,
                           .unused = {}};
    put(request);
  }
  void put(const RingSlot& request) {
    std::memcpy(page.data() + kRingSlotsAt + asked % kRingSlots * kRingSlotBytes, &request,
                sizeof request);
    set_word(0, ++asked);
  }
  RingSlot heard_next() {
    RingSlot answer;
    std::memcpy(&answer, page.data() + kRingSlotsAt + heard++ % kRingSlots * kRingSlotBytes,
                sizeof answer);
    return answer;
  }
  void set_word(std::size_t index, std::uint32_t value) {
    std::memcpy(page.data() + index * 4, &value, sizeof value);
  }
  [[nodiscard]] std::uint32_t word(std::size_t index) const {
    std::uint32_t value;
    std::memcpy(&value, page.data() + index * 4, sizeof value);
    return value;
  }
  PagingRequest taken() {
    PagingRequest request;
    EXPECT_EQ(ring.take(request), PagingRing::Take::kRequest);
    return request;
  }

  alignas(kPageSize) std::array<std::byte, kPageSize> page;
  PagingRing ring{page};
  std::uint32_t asked = 0, heard = 0;
};

TEST_F(PagingRingTest, StartsEmptyAsXensMacrosLeaveIt) {
  EXPECT_EQ(word(0), 0U);
  EXPECT_EQ(word(1), 1U);
  EXPECT_EQ(word(2), 0U);
  EXPECT_EQ(word(3), 1U);
  PagingRequest request;
  EXPECT_EQ(ring.take(request), PagingRing::Take::kNone);
  EXPECT_FALSE(ring.publish());
}

TEST_F(PagingRingTest, AnAnswerRepeatsTheRequest) {
  ask(0x1234, 3);
  const PagingRequest request = taken();
  EXPECT_EQ(request.page, Gfn{0x1234});
  EXPECT_EQ(request.vcpu, 3U);
  EXPECT_FALSE(request.dropped());
  ring.answer(request, true);
  EXPECT_EQ(word(2), 0U);  // not before it is published
  EXPECT_TRUE(ring.publish());
  EXPECT_FALSE(ring.publish());
  ASSERT_EQ(word(2), 1U);
  const RingSlot answer = heard_next();
  EXPECT_EQ(answer.gfn, 0x1234U);
  EXPECT_EQ(answer.vcpu, 3U);
  EXPECT_EQ(answer.flags, kVcpuPaused);
  EXPECT_EQ(answer.reason, kVmEventPaging);
  EXPECT_EQ(answer.version, kVmEventVersion);
  EXPECT_EQ(answer.p2m_type, 10U);
}

TEST_F(PagingRingTest, AnswersMayComeInAnyOrder) {
  for (std::uint32_t i = 0; i < kRingSlots; ++i) ask(i, i);
  std::vector<PagingRequest> requests;
  for (std::uint32_t i = 0; i < kRingSlots; ++i) requests.push_back(taken());
  EXPECT_EQ(ring.nb_unanswered(), kRingSlots);
  for (std::size_t i = kRingSlots; i-- > 0;) ring.answer(requests[i], true);
  EXPECT_TRUE(ring.publish());
  for (std::size_t i = kRingSlots; i-- > 0;) EXPECT_EQ(heard_next().gfn, i);
}

TEST_F(PagingRingTest, AnUnansweredRequestSurvivesTheOthersAnswers) {
  ask(100);
  const PagingRequest first = taken();
  for (std::uint64_t i = 0; i < 40; ++i) {  // five times round
    ask(i);
    ring.answer(taken(), true);
    ASSERT_TRUE(ring.publish());
    EXPECT_EQ(heard_next().gfn, i);
  }
  ring.answer(first, true);
  ASSERT_TRUE(ring.publish());
  EXPECT_EQ(heard_next().gfn, 100U);
  EXPECT_EQ(ring.nb_unanswered(), 0U);
}

TEST_F(PagingRingTest, WhatADeadPagerWasAskedForCanBeReadOffItsPage) {
  EXPECT_TRUE(PagingRing::left_asked(page).empty());
  ask(100);
  const PagingRequest first = taken();
  for (std::uint64_t i = 0; i < 12; ++i) {  // round, over the slot of the first
    ask(i);
    ring.answer(taken(), true);
  }
  ask(200);
  ask(100);
  EXPECT_EQ(PagingRing::left_asked(page), (std::vector{Gfn{100}, Gfn{200}}));
  ring.answer(taken(), false);  // and not loaded
  EXPECT_EQ(PagingRing::left_asked(page), (std::vector{Gfn{100}, Gfn{200}}));
  ring.answer(first, true);
  EXPECT_EQ(PagingRing::left_asked(page), (std::vector{Gfn{100}, Gfn{200}}));  // the untaken one
  ring.answer(taken(), true);
  EXPECT_EQ(PagingRing::left_asked(page), std::vector{Gfn{200}});
}

TEST_F(PagingRingTest, WhetherSomebodyMayHaveWaitedForRoomIsKnownAfterThePublish) {
  const auto serve = [&](std::uint64_t nb_more) {
    for (std::uint64_t i = 0; i < nb_more; ++i) ask(i);
    for (std::uint64_t i = 0; i < nb_more; ++i) ring.answer(taken(), true);
    EXPECT_TRUE(ring.publish());
    return ring.was_full();
  };
  EXPECT_FALSE(serve(kRingSlots - 1));
  EXPECT_TRUE(serve(kRingSlots));
  EXPECT_FALSE(serve(1));
  // The last slot filled while seven were being answered, and before Xen knew.
  for (std::uint64_t i = 0; i < kRingSlots - 1; ++i) ask(i);
  for (std::uint64_t i = 0; i < kRingSlots - 1; ++i) ring.answer(taken(), true);
  ask(7);
  EXPECT_TRUE(ring.publish());
  EXPECT_TRUE(ring.was_full());
}

TEST_F(PagingRingTest, MoreRequestsThanSlotsAreNotBelieved) {
  PagingRequest request;
  set_word(0, kRingSlots + 1);
  EXPECT_EQ(ring.take(request), PagingRing::Take::kBroken);
  set_word(0, 1);
  EXPECT_EQ(ring.take(request), PagingRing::Take::kBroken);
}

TEST_F(PagingRingTest, ACounterThatGoesBackIsNotBelieved) {
  ask(1);
  ask(2);
  (void)taken();
  (void)taken();
  set_word(0, 1);
  PagingRequest request;
  EXPECT_EQ(ring.take(request), PagingRing::Take::kBroken);
}

TEST_F(PagingRingTest, EventsOfAnotherKindAreNotBelieved) {
  PagingRequest request;
  put({.version = kVmEventVersion,
       .flags = 0,
       .reason = 1,
       .vcpu = 0,
       .reserved = 0,
       .gfn = 0,
       .p2m_type = 0,
       .paging_flags = 0,
       .unused = {}});
  EXPECT_EQ(ring.take(request), PagingRing::Take::kBroken);
  EXPECT_EQ(ring.nb_unanswered(), 0U);
}

}  // namespace
}  // namespace snowfabric::xen
