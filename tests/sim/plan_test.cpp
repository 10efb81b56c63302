// SPDX-License-Identifier: BSD-3-Clause
#include "sim/plan.hpp"

#include <gtest/gtest.h>

namespace snowfabric::sim {
namespace {

/// Long enough for reports and time-outs to be a small part of it.
PlanConfig small(std::uint64_t nb_clones) {
  return {.nb_clones = nb_clones, .nb_pages = 512, .bytes_per_s = 3.125e6};
}

TEST(Plan, OneCloneTakesTheImageOnceAndAsLongAsTheLinkNeeds) {
  PlanConfig config{.nb_clones = 1, .nb_pages = 8192, .bytes_per_s = 125e6, .think = {}};
  const PlanResult result = plan(config);
  ASSERT_TRUE(result.finished());
  const double bytes = 8192.0 * 4096;
  EXPECT_NEAR(result.wire_bytes / bytes, 1.02, 0.02);
  EXPECT_NEAR(result.done_at(1) / (bytes / 125e6), 1.05, 0.05);
}

struct Growth {
  LossAt loss_at;
  double most;  ///< of the bytes for one clone
};
class PlanGrowth : public testing::TestWithParam<Growth> {};

TEST_P(PlanGrowth, TheServersBytesAreBoundedAndNoCloneIsFarBehind) {
  PlanConfig config = small(1);
  config.loss = 0.01;
  config.loss_at = GetParam().loss_at;
  const double bytes_for_one = plan(config).wire_bytes;
  config.nb_clones = 128;
  const PlanResult result = plan(config);
  ASSERT_TRUE(result.finished());
  EXPECT_LE(result.wire_bytes / bytes_for_one, GetParam().most);
  EXPECT_LE(result.done_at(0.99), 2 * result.done_at(0.5));
}
INSTANTIATE_TEST_SUITE_P(OnePercent, PlanGrowth,
                         testing::Values(Growth{LossAt::kUplink, 1.15},
                                         Growth{LossAt::kReceivers, 2.3}));

class PlanOfMany : public testing::TestWithParam<std::uint64_t> {};

TEST_P(PlanOfMany, AnExtrapolatedAnswerIsNearTheExactOne) {
  PlanConfig config{.nb_clones = GetParam(), .nb_pages = 8192, .loss = 0.01};
  const PlanResult exact = plan(config);
  EXPECT_FALSE(exact.is_extrapolated());
  config.most_receptions = config.nb_clones * 4096;
  const PlanResult answer = plan(config);
  ASSERT_TRUE(answer.is_extrapolated());
  EXPECT_NEAR(answer.done_at(0.5) / exact.done_at(0.5), 1, 0.05);
  EXPECT_NEAR(answer.done_at(0.99) / exact.done_at(0.99), 1, 0.05);
  EXPECT_NEAR(answer.wire_bytes / exact.wire_bytes, 1, 0.05);
}
INSTANTIATE_TEST_SUITE_P(Clones, PlanOfMany, testing::Values(8, 64));

// Not under sanitizers: meson.build.
TEST(PlanOfHundreds, AreNotExtrapolatedFromWhatGoesOutBeforeTheServerKnowsOfLosses) {
  PlanConfig config{.nb_clones = 512, .nb_pages = 1024, .bytes_per_s = 156.25e6, .loss = 0.01};
  const PlanResult exact = plan(config);
  EXPECT_FALSE(exact.is_extrapolated());
  config.most_receptions = config.nb_clones * 424;
  const PlanResult answer = plan(config);
  ASSERT_TRUE(answer.is_extrapolated());
  EXPECT_FALSE(answer.from_start_up);
  EXPECT_NEAR(answer.wire_bytes / exact.wire_bytes, 1, 0.05);
  EXPECT_NEAR(answer.done_at(0.5) / exact.done_at(0.5), 1, 0.05);
}

TEST(Plan, AnAnswerFromTheStartUpSaysSo) {
  PlanConfig config{.nb_clones = 8, .nb_pages = 256, .loss = 0.01, .most_receptions = 8 * 64};
  EXPECT_TRUE(plan(config).from_start_up);
  config.loss_at = LossAt::kUplink;
  EXPECT_FALSE(plan(config).from_start_up);  // what all lose is sent once more, known or not
  config.loss_at = LossAt::kReceivers;
  config.most_receptions = kMostReceptions;
  EXPECT_FALSE(plan(config).from_start_up);  // exact
}

TEST(Plan, LossesAskForALargerImageUpToHalfAsLargeAgain) {
  PlanConfig config{.nb_clones = 4096, .nb_pages = 1 << 18U};
  EXPECT_EQ(most_pages_run(config), 4096U);
  config.loss = 0.01;
  EXPECT_GT(most_pages_run(config), 4096U);
  EXPECT_LE(most_pages_run(config), 4096U * 3 / 2);
  config.bytes_per_s *= 10;  // it would be more than that
  EXPECT_EQ(most_pages_run(config), 4096U);
}

TEST(Plan, AFaultsTimeIsForThePagesThatAreWaitedForAlone) {
  PlanConfig config{.nb_clones = 1, .nb_pages = 2048, .push = false, .prefetch = 0, .think = {}};
  const double without = plan(config).done_at(1);
  config.fault = std::chrono::microseconds{100};
  EXPECT_NEAR(plan(config).done_at(1) - without, 2048 * 100e-6, 0.01 * 2048 * 100e-6);
  config.nb_clones = 8;  // most pages come by a sibling's fault
  EXPECT_LT(plan(config).done_at(1), 0.5 * 2048 * 100e-6);
}

TEST(Plan, TheSameQuestionHasTheSameAnswer) {
  PlanConfig config = small(8);
  config.loss = 0.02;
  EXPECT_EQ(plan(config).done_s, plan(config).done_s);
}

TEST(Plan, ASlowClonesLinkIsItsOwn) {
  PlanConfig config = small(4);
  const double alike = plan(config).done_at(0.75);
  config.nb_slow = 1;
  config.slow_bytes_per_s = config.bytes_per_s / 8;
  const PlanResult result = plan(config);
  ASSERT_TRUE(result.finished());
  EXPECT_LT(result.done_at(0.75), 1.5 * alike);
  EXPECT_GT(result.slow_done_s, 6 * alike);
  EXPECT_EQ(result.slow_done_s, result.done_at(1));
}

TEST(Plan, ByTagsASlowCloneHoldsUpTheOthersOnlyIfItIsTagged) {
  PlanConfig config{.nb_clones = 4, .nb_pages = 8192, .bytes_per_s = 31.25e6, .think = {}};
  config.nb_slow = 1;
  config.slow_bytes_per_s = config.bytes_per_s / 8;
  config.queue_bytes = 64 * 1024;  // it says soon that it cannot follow
  const auto half_done = [&](FlowRule rule, Tagged tagged = Tagged::kFast) {
    config.server.flow.rule = rule;
    config.tagged = tagged;
    return plan(config).done_at(0.5);
  };
  const double by_max = half_done(FlowRule::kMax);
  EXPECT_NEAR(half_done(FlowRule::kTagged, Tagged::kFast) / by_max, 1, 0.1);
  EXPECT_GT(half_done(FlowRule::kTagged, Tagged::kSlow), 2 * by_max);
}

TEST(Plan, ClonesThatTouchTogetherAllAskAndAreHeard) {
  PlanConfig config = small(1);
  config.push = false;
  config.overlap = 1;
  const double alone = plan(config).request_frames;
  config.nb_clones = 16;
  const PlanResult result = plan(config);
  EXPECT_GT(result.request_frames, 8 * alone);
  EXPECT_EQ(result.server_ring_drops, 0);
}

TEST(Plan, AServerThatStartsSlowlyIsLater) {
  PlanConfig config{.nb_clones = 2, .nb_pages = 8192, .think = {}};
  const double at_once = plan(config).done_at(1);
  config.start_bytes_per_s = config.bytes_per_s / 10;
  EXPECT_GT(plan(config).done_at(1), 2 * at_once);
  config.start_bytes_per_s = 10 * config.bytes_per_s;  // a link is no faster for it
  EXPECT_EQ(plan(config).done_at(1), at_once);
}

TEST(Plan, AFastLinkIsUsed) {
  const double bytes = 8192.0 * 4096;
  const PlanResult result =
      plan({.nb_clones = 2, .nb_pages = 8192, .bytes_per_s = 12.5e9, .think = {}, .per_frame = {}});
  ASSERT_TRUE(result.finished());
  EXPECT_LT(result.done_at(1) / (bytes / 12.5e9), 1.5);
}

TEST(Plan, AnImageOfOnePageOrNothingToTouchIsDone) {
  PlanConfig config{.nb_clones = 2, .nb_pages = 1, .touched = 0};
  EXPECT_TRUE(plan(config).finished());
}

TEST(Plan, PagesThatSiblingsTouchTogetherAreSentOnce) {
  PlanConfig config = small(8);
  config.push = false;
  config.prefetch = 0;
  config.touched = 0.25;
  config.overlap = 1;
  const PlanResult together = plan(config);
  config.overlap = 0;
  const PlanResult apart = plan(config);
  EXPECT_NEAR(together.pages_multicast, 128, 8);
  EXPECT_GT(apart.pages_multicast, 2.5 * together.pages_multicast);
}

TEST(Plan, ClonesTouchThePagesOfTheTracesInTurns) {
  PlanConfig config{.nb_clones = 5,
                    .nb_pages = 512,
                    .push = false,
                    .traces = {{500, 3, 77}, {3, 400}},
                    .prefetch = 0};
  const PlanResult result = plan(config);
  EXPECT_TRUE(result.finished());
  EXPECT_EQ(result.pages_multicast, 4);  // each once, whoever asks
  config.nb_clones = 1;
  EXPECT_EQ(plan(config).pages_multicast, 3);  // of the first trace alone
}

TEST(Plan, WhoeverAsksMayGiveUp) {
  unsigned nb_looks = 0;
  const PlanResult result = plan(small(4), [&](double share) {
    EXPECT_GE(share, 0);
    EXPECT_LE(share, 1);
    return ++nb_looks < 2;
  });
  EXPECT_FALSE(result.finished());
  EXPECT_EQ(nb_looks, 2U);
}

}  // namespace
}  // namespace snowfabric::sim
