// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/latency.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

TEST(LatencyHistogram, HasNoPercentileBeforeTheFirstValue) {
  EXPECT_EQ(LatencyHistogram{}.percentile(0.5), 0ns);
}

TEST(LatencyHistogram, APercentileIsAtMostAQuarterAboveTheValue) {
  for (const Nanos value :
       {Nanos{4ns}, Nanos{1us}, Nanos{1999ns}, Nanos{70us}, Nanos{3ms}, Nanos{10s}}) {
    LatencyHistogram histogram;
    histogram.add(value);
    EXPECT_GE(histogram.percentile(0.5), value);
    EXPECT_LE(histogram.percentile(0.5), value * 5 / 4 + 1ns);
  }
}

TEST(LatencyHistogram, AFewSlowOnesShowInTheTailOnly) {
  LatencyHistogram histogram;
  for (int i = 0; i < 98; ++i) histogram.add(100us);
  histogram.add(50ms);
  histogram.add(50ms);
  EXPECT_LT(histogram.percentile(0.5), 130us);
  EXPECT_GE(histogram.percentile(0.99), 50ms);
}

TEST(LatencyHistogram, ValuesBeyondItsBoundsAreCountedAtThem) {
  LatencyHistogram histogram;
  histogram.add(-1ns);
  EXPECT_LE(histogram.percentile(0.5), 5ns);
  histogram.add(Nanos::max());
  EXPECT_GT(histogram.percentile(1.0), 10min);
}

}  // namespace
}  // namespace snowfabric
