// SPDX-License-Identifier: BSD-3-Clause
#include "sim/checks.hpp"

#include <gtest/gtest.h>

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kPages = 512;

/// A lab in which a clone fetches, and nothing is wrong.
struct Checks : testing::Test {
  Checks() {
    for (int i = 0; i < 3; ++i) lab.add_memtap({});
    lab.add_guest(memtap(), shuffled(kPages, 1));
    lab.run_until(1ms);
  }
  Memtap& memtap() { return *lab.memtaps()[0]; }
  void check_all() {
    check_frames(lab.server(), judge);
    check_frames(memtap(), judge);
    check_bounds(lab.server(), 3, judge);
    check_bounds(memtap(), judge);
  }

  const TestImage image{kPages, 0.3, 31};
  Lab lab{image, {}, 31};
  Judge judge;
};

TEST_F(Checks, OfALabThatWorksNothingIsBrokenAtAnyTime) {
  for (Nanos until = 1ms; !lab.run(until); until += 10us) check_all();
  lab.run_until(lab.now() + 1s);
  check_all();
  check_quiet(memtap(), judge);
  EXPECT_TRUE(judge.ok()) << testing::PrintToString(judge.broken());
}

TEST_F(Checks, AFrameThatVanishesIsMissed) {
  --memtap().rx_taken;
  check_frames(memtap(), judge);
  ASSERT_FALSE(judge.ok());
  EXPECT_EQ(judge.first(), Breach::kFrames);
}

TEST_F(Checks, AFrameThatNeverCameToTheSwitchIsMissed) {
  --lab.server().tx_switched;
  check_frames(lab.server(), judge);
  EXPECT_FALSE(judge.ok());
}

TEST_F(Checks, AMemberMoreThanThereAreIsSeen) {
  lab.run_until(1s);  // the gauge is set now and then
  check_bounds(lab.server(), 2, judge);
  ASSERT_FALSE(judge.ok());
  EXPECT_EQ(judge.first(), Breach::kBounds);
}

TEST_F(Checks, MoreInFlightThanATableHasIsSeen) {
  ASSERT_GT(memtap().engine().nb_in_flight(), 0U);
  memtap().config.max_inflight = 0;
  check_bounds(memtap(), judge);
  EXPECT_FALSE(judge.ok());
}

TEST_F(Checks, WhoStillAsksIsNotQuiet) {
  check_quiet(memtap(), judge);
  EXPECT_FALSE(judge.ok());
}

}  // namespace
}  // namespace snowfabric::sim
