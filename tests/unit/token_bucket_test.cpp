// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/token_bucket.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr double kRate = 1e6;  // bytes per second: one a microsecond

TEST(TokenBucket, ABurstOfItsDepthPassesAtOnceAndThenNothing) {
  TokenBucket bucket{kRate, 3000};
  bucket.refill(0ns);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.take(1000));
  EXPECT_FALSE(bucket.take(1));
}

TEST(TokenBucket, ADepthThatChangesHoldsFromTheNextRefillOn) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  bucket.set_burst(3000);
  bucket.refill(1s);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(bucket.take(1000));
  EXPECT_FALSE(bucket.take(1));
}

TEST(TokenBucket, OverALongTimeTheRateIsKeptWhateverTheFrameSize) {
  TokenBucket bucket{kRate, 4000};
  double taken = 0;
  for (Nanos now{0}; now <= 1s; now += 100us) {
    bucket.refill(now);
    while (bucket.take(1434)) taken += 1434;
  }
  EXPECT_NEAR(taken, 1e6, 4000 + 1434);
  EXPECT_DOUBLE_EQ(bucket.totals().taken, taken);
}

TEST(TokenBucket, WhatIsChargedIsPaidBeforeMoreIsTaken) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  bucket.charge(1500);
  bucket.charge(500);
  EXPECT_FALSE(bucket.is_ready());
  EXPECT_EQ(bucket.ready_at(), 1000us + 1ns);
  bucket.refill(bucket.ready_at());
  EXPECT_TRUE(bucket.take(1));
}

TEST(TokenBucket, AFrameLargerThanTheBalanceGoesOutOnceAndIsPaidForLater) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  EXPECT_TRUE(bucket.take(900));
  EXPECT_TRUE(bucket.take(4000));  // 100 left is enough to begin
  EXPECT_FALSE(bucket.take(1));
  bucket.refill(3900us);
  EXPECT_FALSE(bucket.take(1));
  bucket.refill(3902us);
  EXPECT_TRUE(bucket.take(1));
}

TEST(TokenBucket, ReadyAtIsTheFirstMomentAtWhichTakeSucceeds) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  EXPECT_EQ(bucket.ready_at(), 0ns);
  EXPECT_TRUE(bucket.take(5000));
  const Nanos ready = bucket.ready_at();
  EXPECT_NEAR(static_cast<double>(ready.count()), 4e6, 10);
  bucket.refill(ready - 1us);
  EXPECT_FALSE(bucket.take(1));
  bucket.refill(ready);
  EXPECT_TRUE(bucket.take(1));
}

TEST(TokenBucket, IdleTimeDoesNotSaveUpMoreThanTheDepthButCountsAsGranted) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  bucket.refill(10s);
  EXPECT_TRUE(bucket.take(1000));
  EXPECT_FALSE(bucket.take(1));
  EXPECT_DOUBLE_EQ(bucket.totals().granted, 1e7);
  EXPECT_DOUBLE_EQ(bucket.totals().taken, 1000);
  EXPECT_FALSE(bucket.was_limit_since({}));  // the demand was
}

TEST(TokenBucket, ItWasTheLimitIfNearlyAllThatItGrantedWasTaken) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  const TokenBucket::Totals then = bucket.totals();
  bucket.refill(1ms);  // 1,000 bytes
  bucket.charge(740);
  EXPECT_FALSE(bucket.was_limit_since(then));
  bucket.charge(20);
  EXPECT_TRUE(bucket.was_limit_since(then));
}

TEST(TokenBucket, ANewRateHoldsFromTheNextRefill) {
  TokenBucket bucket{kRate, 1000};
  bucket.refill(0ns);
  EXPECT_TRUE(bucket.take(1000));
  bucket.set_rate(10 * kRate);
  bucket.refill(50us);
  EXPECT_TRUE(bucket.take(500));
  EXPECT_FALSE(bucket.take(1));
}

}  // namespace
}  // namespace snowfabric
