// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/flow_control.hpp"

#include <algorithm>
#include <initializer_list>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr FlowConfig kConfig{.floor_bytes_per_s = 1e6, .max_bytes_per_s = 1e9, .min_frames = 64};

/// 50 ms at `sent` bytes per second in frames of 4000 bytes, a share of them lost.
FlowInterval interval(double sent, double loss, bool bucket_limited = true) {
  const double frames = sent * 0.05 / 4000;
  const auto lost = static_cast<std::uint32_t>(frames * loss);
  const auto received = static_cast<std::uint32_t>(frames) - lost;
  return {.duration = 50ms,
          .rx_bytes = std::uint64_t{received} * 4000,
          .rx_frames = received,
          .lost = lost,
          .bucket_limited = bucket_limited};
}

TEST(FlowEstimate, WithoutLossItOnlyGrows) {
  FlowEstimate flow{kConfig, 50e6};
  for (const double sent : {50e6, 20e6, 60e6, 5e6, 30e6}) {
    const double before = flow.bytes_per_s();
    flow.on_interval(interval(sent, 0));
    EXPECT_GE(flow.bytes_per_s(), before) << sent;
  }
}

TEST(FlowEstimate, ALossFreeIntervalAtTheFullRateRaisesIt) {
  FlowEstimate flow{kConfig, 50e6};
  flow.on_interval(interval(50e6, 0));
  EXPECT_GT(flow.bytes_per_s(), 50e6 * 1.04);
}

TEST(FlowEstimate, LowDemandSaysNothing) {
  FlowEstimate flow{kConfig, 50e6};
  flow.on_interval(interval(40e6, 0.5, false));
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), 50e6);
}

TEST(FlowEstimate, LossOfPushedPagesFarBelowTheRateHalvesItAndBringsItDownToThemIfItLasts) {
  FlowEstimate flow{kConfig, 800e6};
  FlowInterval pushed = interval(100e6, 0.5, false);
  pushed.push_limited = true;
  flow.on_interval(pushed);
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), 400e6);
  flow.on_interval(pushed);
  EXPECT_NEAR(flow.bytes_per_s(), 50e6, 5e6);  // what comes through
}

TEST(FlowEstimate, TooFewFramesSayNothing) {
  FlowEstimate flow{kConfig, 50e6};
  FlowInterval few{.duration = 50ms, .rx_bytes = 4000, .rx_frames = 1, .lost = 62};
  few.bucket_limited = true;
  flow.on_interval(few);
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), 50e6);
}

TEST(FlowEstimate, AnIntervalWithoutDurationSaysNothing) {
  FlowEstimate flow{kConfig, 50e6};
  FlowInterval none = interval(50e6, 0.3);
  none.duration = 0ns;
  flow.on_interval(none);
  none.duration = -1s;
  flow.on_interval(none);
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), 50e6);
}

TEST(FlowEstimate, CongestionBringsItDownToWhatTheLinkCarries) {
  constexpr double kLink = 20e6;
  FlowEstimate flow{kConfig, 100e6};
  for (int i = 0; i < 20; ++i) {  // what exceeds the link is lost
    const double sent = flow.bytes_per_s();
    flow.on_interval(interval(sent, sent > kLink ? 1 - kLink / sent : 0));
  }
  EXPECT_LE(flow.bytes_per_s(), kLink * 1.15);
  EXPECT_GE(flow.bytes_per_s(), kLink * 0.7);
}

TEST(FlowEstimate, LossThatStaysWhenTheRateFallsIsNoiseAndDoesNotCollapseIt) {
  FlowEstimate flow{kConfig, 50e6};
  for (int i = 0; i < 60; ++i) flow.on_interval(interval(flow.bytes_per_s(), 0.05));
  EXPECT_NEAR(flow.background_loss(), 0.05, 0.02);
  EXPECT_GE(flow.bytes_per_s(), 50e6 * 0.7);
}

TEST(FlowEstimate, TotalLossGoesToTheFloorAndNotBelow) {
  FlowEstimate flow{kConfig, 50e6};
  for (int i = 0; i < 50; ++i) flow.on_interval(interval(50e6, 1.0));
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), kConfig.floor_bytes_per_s);
}

TEST(FlowEstimate, ItNeverExceedsThePort) {
  FlowEstimate flow{kConfig, 900e6};
  for (int i = 0; i < 10; ++i) flow.on_interval(interval(990e6, 0));
  EXPECT_DOUBLE_EQ(flow.bytes_per_s(), kConfig.max_bytes_per_s);
}

/// Members that can take 10, 40 and 100, of whom the second asks for three times as much as the
/// first, and the third for nothing.
GroupRate three(bool asked, std::initializer_list<double> tagged = {}) {
  GroupRate rate;
  for (const double can_take : {10.0, 40.0, 100.0}) {
    FlowEstimate member{kConfig, can_take};
    if (std::ranges::find(tagged, can_take) != tagged.end()) member.tag();
    rate.add(member, !asked || can_take > 50 ? 0 : can_take < 20 ? 20 : 60);
  }
  return rate;
}

TEST(GroupRate, IsTheMeanByDemandOrOfAllWhereNobodyAsks) {
  EXPECT_DOUBLE_EQ(three(true).by(FlowRule::kMean), (10 + 3 * 40) / 4.0);
  EXPECT_DOUBLE_EQ(three(false).by(FlowRule::kMean), 50);
}

TEST(GroupRate, WithEqualWeightsDemandDoesNotMatter) {
  EXPECT_DOUBLE_EQ(three(true).by(FlowRule::kEqual), 50);
  EXPECT_DOUBLE_EQ(three(false).by(FlowRule::kEqual), 50);
}

TEST(GroupRate, IsTheSlowestsOrTheFastestsWhateverTheyAskFor) {
  EXPECT_DOUBLE_EQ(three(true).by(FlowRule::kMin), 10);
  EXPECT_DOUBLE_EQ(three(true).by(FlowRule::kMax), 100);
}

TEST(GroupRate, IsTheSlowestsOfTheTaggedAndTheMeanByDemandWhereNobodyIs) {
  EXPECT_DOUBLE_EQ(three(true, {40, 100}).by(FlowRule::kTagged), 40);
  EXPECT_DOUBLE_EQ(three(true, {10}).by(FlowRule::kTagged), 10);
  EXPECT_DOUBLE_EQ(three(true).by(FlowRule::kTagged), three(true).by(FlowRule::kMean));
}

}  // namespace
}  // namespace snowfabric
