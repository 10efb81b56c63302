// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/idle.hpp"

#include <unistd.h>

#include <array>
#include <chrono>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr IdleConfig kSoon{IdleStrategy::kBackoff, 2, 3};

TEST(Idle, NamesAndParsingAgree) {
  for (const auto s : {IdleStrategy::kBusy, IdleStrategy::kYield, IdleStrategy::kBackoff})
    EXPECT_EQ(parse_idle(to_string(s)), s);
  EXPECT_FALSE(parse_idle("lazy"));
}

TEST(Idle, BusyAndYieldNeverSleep) {
  for (const auto s : {IdleStrategy::kBusy, IdleStrategy::kYield}) {
    Idle idle{{s, 0, 0}};
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(idle.miss());
    EXPECT_FALSE(idle.about_to_sleep());
  }
}

TEST(Idle, BackoffSleepsAfterItsPausesAndYieldsAndAHitStartsOver) {
  Idle idle{kSoon};
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 5; ++i) EXPECT_FALSE(idle.miss()) << i;
    EXPECT_TRUE(idle.about_to_sleep());
    EXPECT_TRUE(idle.miss());
    EXPECT_TRUE(idle.miss());
    idle.hit();
  }
}

TEST(Idle, AReadableFdEndsTheSleepAndCountsAsAHit) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  Idle idle{kSoon};
  for (int i = 0; i < 5; ++i) idle.miss(std::span{ends}.first(1));
  EXPECT_TRUE(idle.miss(std::span{ends}.first(1)));
  EXPECT_FALSE(idle.about_to_sleep());  // looks eagerly again
  close(ends[0]);
  close(ends[1]);
}

TEST(Idle, ADeadlineTooNearForASleepOnlyYields) {
  Idle idle{{IdleStrategy::kBackoff, 0, 0}};
  EXPECT_FALSE(idle.miss({}, 1us));
  EXPECT_FALSE(idle.miss({}, -5ms));
  EXPECT_TRUE(idle.miss({}, 30us));
}

TEST(Idle, ASourceWithoutFdShortensTheSleep) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  Idle idle{{IdleStrategy::kBackoff, 0, 0}};
  const auto time_of = [&](std::span<const int> fds) {
    auto best = Nanos::max();  // the least of some: the machine may be busy
    for (int i = 0; i < 20; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      idle.miss(fds);
      best = std::min<Nanos>(best, std::chrono::steady_clock::now() - begin);
    }
    return best;
  };
  EXPECT_GE(time_of(std::span{ends}.first(1)), 1ms);
  EXPECT_LT(time_of(std::array{ends[0], -1}), 1ms);
  EXPECT_LT(time_of({}), 1ms);
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace snowfabric
