// SPDX-License-Identifier: BSD-3-Clause
#include <deque>

#include <gtest/gtest.h>

#include "fabric/base/prng.hpp"
#include "fabric/page_queue.hpp"

namespace snowfabric {
namespace {

TEST(RingBuffer, GivesBackInTheOrderTaken) {
  RingBuffer<int> ring{3};
  EXPECT_TRUE(ring.empty());
  for (const int i : {1, 2, 3}) EXPECT_TRUE(ring.push(i));
  EXPECT_EQ(ring.front(), 1);
  for (const int i : {1, 2, 3}) EXPECT_EQ(ring.pop(), i);
  EXPECT_TRUE(ring.empty());
}

TEST(RingBuffer, WhenFullItRefusesAndKeepsWhatItHas) {
  RingBuffer<int> ring{2};
  EXPECT_TRUE(ring.push(1));
  EXPECT_TRUE(ring.push(2));
  EXPECT_FALSE(ring.push(3));
  EXPECT_EQ(ring.size(), 2U);
  EXPECT_EQ(ring.pop(), 1);
  EXPECT_TRUE(ring.push(4));
  EXPECT_EQ(ring.pop(), 2);
  EXPECT_EQ(ring.pop(), 4);
}

TEST(RingBuffer, OneWithoutCapacityIsAlwaysFullAndEmpty) {
  RingBuffer<int> ring{0};
  EXPECT_FALSE(ring.push(1));
  EXPECT_TRUE(ring.empty());
}

TEST(RingBuffer, AgreesWithADequeOverManyRandomSteps) {
  constexpr std::uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  Prng random{kSeed};
  RingBuffer<std::uint64_t> ring{7};
  std::deque<std::uint64_t> expected;
  for (int step = 0; step < 5000; ++step) {
    if (random.next() % 2 == 0) {
      const std::uint64_t item = random.next();
      const bool room = expected.size() < 7;
      ASSERT_EQ(ring.push(item), room);
      if (room) expected.push_back(item);
    } else if (!expected.empty()) {
      ASSERT_EQ(ring.pop(), expected.front());
      expected.pop_front();
    }
    ASSERT_EQ(ring.size(), expected.size());
  }
}

}  // namespace
}  // namespace snowfabric
