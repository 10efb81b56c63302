// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/timer_wheel.hpp"

#include <map>
#include <set>

#include <gtest/gtest.h>

#include "fabric/base/prng.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr Nanos kTick = 1us;
constexpr Nanos kTurn = 256us;  // of the wheel

/// Ids due at `now`, in the order they fire.
std::vector<std::uint32_t> due(TimerWheel& wheel, Nanos now) {
  std::vector<std::uint32_t> ids;
  wheel.expire(now, [&](std::uint32_t id) { ids.push_back(id); });
  return ids;
}

TEST(TimerWheel, ATimerFiresOnceWhenItsDeadlineHasComeAndNotBefore) {
  TimerWheel wheel{4, kTick};
  wheel.arm(2, 10us);
  EXPECT_TRUE(due(wheel, 10us - 1ns).empty());
  EXPECT_EQ(due(wheel, 10us), std::vector<std::uint32_t>{2});
  EXPECT_TRUE(due(wheel, 1s).empty());
}

TEST(TimerWheel, ATimerBeyondOneTurnWaitsForItsOwnTurn) {
  TimerWheel wheel{4, kTick};
  wheel.arm(0, 2 * kTurn + 5us);
  EXPECT_TRUE(due(wheel, 5us).empty());
  EXPECT_TRUE(due(wheel, kTurn + 5us).empty());
  EXPECT_EQ(due(wheel, 2 * kTurn + 5us).size(), 1U);
}

TEST(TimerWheel, AJumpOfManyTurnsFiresEverythingThatIsDue) {
  TimerWheel wheel{300, kTick};
  for (std::uint32_t id = 0; id < 300; ++id) wheel.arm(id, Nanos{id} * 997 + 1ns);
  EXPECT_EQ(due(wheel, 1s).size(), 300U);
  EXPECT_EQ(wheel.next_deadline(), Nanos::max());
}

TEST(TimerWheel, ADeadlineInThePastFiresAtTheNextSweep) {
  TimerWheel wheel{4, kTick};
  due(wheel, 100us);
  wheel.arm(1, 3us);
  EXPECT_EQ(due(wheel, 101us), std::vector<std::uint32_t>{1});
}

TEST(TimerWheel, ACancelledOrRearmedTimerKeepsOnlyItsLastDeadline) {
  TimerWheel wheel{4, kTick};
  wheel.arm(0, 5us);
  wheel.arm(1, 5us);
  wheel.cancel(0);
  wheel.cancel(0);  // twice is harmless
  wheel.arm(1, 9us);
  EXPECT_TRUE(due(wheel, 8us).empty());
  EXPECT_EQ(due(wheel, 9us), std::vector<std::uint32_t>{1});
}

TEST(TimerWheel, ATimerArmedByItsOwnExpiryFiresLaterAndNotInTheSameSweep) {
  TimerWheel wheel{2, kTick};
  wheel.arm(0, 5us);
  unsigned fired = 0;
  const auto again = [&](std::uint32_t id) {
    ++fired;
    wheel.arm(id, 0us);  // "at once"
  };
  wheel.expire(5us, again);
  EXPECT_EQ(fired, 1U);
  wheel.expire(6us, again);
  EXPECT_EQ(fired, 2U);
}

TEST(TimerWheel, AnExpiryMayCancelItsNeighbourInTheBucket) {
  TimerWheel wheel{3, kTick};
  for (std::uint32_t id = 0; id < 3; ++id) wheel.arm(id, 5us);
  std::set<std::uint32_t> fired;
  wheel.expire(5us, [&](std::uint32_t id) {
    fired.insert(id);
    for (std::uint32_t other = 0; other < 3; ++other) wheel.cancel(other);
  });
  EXPECT_EQ(fired.size(), 1U);
}

TEST(TimerWheel, AgreesWithASortedMapOverManyRandomRounds) {
  constexpr std::uint64_t kSeed = 3;
  SCOPED_TRACE(kSeed);
  Prng random{kSeed};
  TimerWheel wheel{64, kTick};
  std::map<std::uint32_t, Nanos> armed;
  Nanos now{0};
  for (int round = 0; round < 5000; ++round) {
    const auto id = static_cast<std::uint32_t>(random.next() % 64);
    if (random.next() % 4 == 0) {
      wheel.cancel(id);
      armed.erase(id);
    } else {
      armed[id] = now + Nanos{1 + static_cast<std::int64_t>(random.next() % 700'000)};
      wheel.arm(id, armed[id]);
    }
    Nanos earliest = Nanos::max();
    for (const auto& [other, deadline] : armed) earliest = std::min(earliest, deadline);
    ASSERT_EQ(wheel.next_deadline(), earliest);
    now += Nanos{static_cast<std::int64_t>(random.next() % 20'000)};
    std::set<std::uint32_t> expected;
    std::erase_if(armed, [&](const auto& timer) {
      return timer.second <= now && expected.insert(timer.first).second;
    });
    const auto fired = due(wheel, now);
    ASSERT_EQ(std::set<std::uint32_t>(fired.begin(), fired.end()), expected);
    ASSERT_EQ(fired.size(), expected.size());
  }
}

}  // namespace
}  // namespace snowfabric
