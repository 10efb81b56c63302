// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/rto.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr RtoConfig kConfig{.initial = 20ms, .min = 1ms, .max = 500ms};

TEST(Rto, BeforeTheFirstSampleTheInitialValueHolds) {
  const RtoEstimator rto{kConfig};
  EXPECT_EQ(rto.rto(0), 20ms);
  EXPECT_EQ(rto.srtt(), 0ns);
}

TEST(Rto, TheFirstSampleIsTheMeanAndHalfOfItTheVariation) {
  RtoEstimator rto{kConfig};
  rto.sample(4ms);
  EXPECT_EQ(rto.srtt(), 4ms);
  EXPECT_EQ(rto.rttvar(), 2ms);
  EXPECT_EQ(rto.rto(0), 12ms);  // 4 + 4 x 2
}

TEST(Rto, LaterSamplesMoveMeanByAnEighthAndVariationByAQuarter) {
  RtoEstimator rto{kConfig};
  rto.sample(8ms);
  rto.sample(16ms);
  EXPECT_EQ(rto.srtt(), 9ms);    // 8 + 8 / 8
  EXPECT_EQ(rto.rttvar(), 5ms);  // 4 + (8 - 4) / 4
  rto.sample(1ms);
  EXPECT_EQ(rto.srtt(), 8ms);  // samples below the mean pull it down as well
}

TEST(Rto, EachUnansweredAttemptDoublesItUpToTheMaximum) {
  RtoEstimator rto{kConfig};
  rto.sample(4ms);
  EXPECT_EQ(rto.rto(1), 24ms);
  EXPECT_EQ(rto.rto(2), 48ms);
  EXPECT_EQ(rto.rto(6), 500ms);
  EXPECT_EQ(rto.rto(255), 500ms);  // no overflow
}

TEST(Rto, WhatALateAnswerBackedOffHoldsUntilTheNextSample) {
  RtoEstimator rto{kConfig};
  rto.answered_late(1);
  EXPECT_EQ(rto.rto(0), 40ms);
  EXPECT_EQ(rto.rto(1), 80ms);
  rto.sample(30ms);  // a queue of 30 ms, which 20 ms would never have measured
  EXPECT_EQ(rto.rto(0), 90ms);
}

TEST(Rto, AnOutageIsKeptAsEightTimesTheFirstTimeOut) {
  RtoEstimator rto{kConfig};
  rto.answered_late(200);
  rto.answered_late(1);
  EXPECT_EQ(rto.rto(0), 160ms);
}

TEST(Rto, ASteadyRoundTripKeepsTheMinimumAsItsMargin) {
  for (const Nanos rtt : {Nanos{10us}, Nanos{5ms}}) {
    RtoEstimator rto{kConfig};
    for (int i = 0; i < 50; ++i) rto.sample(rtt);
    EXPECT_LT(rto.rttvar(), 1us);
    EXPECT_EQ(rto.rto(0), rtt + 1ms);
  }
}

}  // namespace
}  // namespace snowfabric
