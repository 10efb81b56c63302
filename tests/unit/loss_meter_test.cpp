// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/loss_meter.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

TEST(LossMeter, WhatWasSentBeforeTheFirstFrameIsNotLost) {
  LossMeter meter;
  EXPECT_EQ(meter.on_seq(5'000'000), 0U);
  EXPECT_EQ(meter.received(), 1U);
  EXPECT_EQ(meter.lost(), 0U);
}

TEST(LossMeter, AGapCountsTheFramesMissingInIt) {
  LossMeter meter;
  meter.on_seq(10);
  EXPECT_EQ(meter.on_seq(14), 3U);
  EXPECT_EQ(meter.lost(), 3U);
  EXPECT_EQ(meter.received(), 2U);
}

TEST(LossMeter, ALateFrameTakesItsLossBackOnce) {
  LossMeter meter;
  meter.on_seq(10);
  meter.on_seq(13);
  meter.on_seq(12);
  EXPECT_EQ(meter.lost(), 1U);
  EXPECT_EQ(meter.received(), 3U);
  meter.on_seq(12);  // a second copy counts nothing
  EXPECT_EQ(meter.lost(), 1U);
  EXPECT_EQ(meter.received(), 3U);
}

TEST(LossMeter, AFrameLaterThanTheWindowStaysLost) {
  LossMeter meter;
  meter.on_seq(0);
  meter.on_seq(2);
  meter.on_seq(2 + LossMeter::kWindow);
  const std::uint32_t lost = meter.lost();
  meter.on_seq(1);
  EXPECT_EQ(meter.lost(), lost);
}

TEST(LossMeter, ADuplicateOfTheNewestFrameCountsNothing) {
  LossMeter meter;
  meter.on_seq(7);
  meter.on_seq(7);
  EXPECT_EQ(meter.received(), 1U);
  EXPECT_EQ(meter.lost(), 0U);
}

TEST(LossMeter, TheSequenceWrapsWithoutAGap) {
  LossMeter meter;
  meter.on_seq(0xffff'fffe);
  EXPECT_EQ(meter.on_seq(1), 2U);  // ffffffff and 0
  meter.on_seq(0);
  EXPECT_EQ(meter.lost(), 1U);
}

TEST(LossMeter, AJumpBeyondTheLargestGapIsANewSequenceInBothDirections) {
  LossMeter meter;
  meter.on_seq(LossMeter::kMaxGap * 4);
  EXPECT_EQ(meter.on_seq(LossMeter::kMaxGap * 5 + 1), 0U);
  EXPECT_EQ(meter.on_seq(1), 0U);
  EXPECT_EQ(meter.lost(), 0U);
  EXPECT_EQ(meter.on_seq(3), 1U);  // counted from the new place on
}

TEST(LossMeter, ANewSequenceKeepsTheTotals) {
  LossMeter meter;
  meter.on_seq(0);
  meter.on_seq(2);
  meter.new_sequence();
  EXPECT_EQ(meter.on_seq(1000), 0U);
  EXPECT_EQ(meter.lost(), 1U);
  EXPECT_EQ(meter.received(), 3U);
}

}  // namespace
}  // namespace snowfabric
