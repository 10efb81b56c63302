// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/page_table.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr Nanos kStart = 20 * 24h;  // of a machine that has been up for some time
constexpr Nanos kUnit{4096};
constexpr Gfn kPage{5};

/// The page's last multicast, as it was remembered at `now`.
Nanos remembered(PageTable& pages, Nanos now) {
  pages.age(now);
  return pages.last_multicast(pages[kPage]);
}

TEST(PageTable, APageThatNeverWentOutSaysSo) {
  PageTable pages{10};
  EXPECT_EQ(remembered(pages, kStart), kNever);
  EXPECT_FALSE(PageTable::was_multicast(pages[kPage]));
}

TEST(PageTable, APageAskedOfTheCacheMayBeOneThatIsNot) {
  PageTable pages{10};
  for (const Gfn page : {kPage, Gfn{10}, Gfn{0xffff'ffff}}) pages.prefetch(page);  // under ASan
  EXPECT_FALSE(PageTable::was_multicast(pages[kPage]));
}

TEST(PageTable, TimesAreRightToAUnitForAnHour) {
  PageTable pages{10};
  pages.age(kStart);
  pages.went_to_all(pages[kPage], kStart + 10ms);
  for (Nanos now = kStart + 10ms; now < kStart + 1h; now += 7s) {
    const Nanos last = remembered(pages, now);
    ASSERT_LE(last, kStart + 10ms);
    ASSERT_GT(last, kStart + 10ms - kUnit);
  }
  EXPECT_TRUE(PageTable::was_multicast(pages[kPage]));
}

TEST(PageTable, AnAnswerToOneIsForgottenWhenThePageGoesToAll) {
  PageTable pages{10};
  pages.age(kStart);
  pages[kPage].sent_to_one = true;
  pages.went_to_all(pages[kPage], kStart);
  EXPECT_FALSE(pages[kPage].sent_to_one);
}

TEST(PageTable, WhatIsOldStaysOldHoweverLongItLasts) {
  PageTable pages{10};
  pages.age(kStart);
  pages.went_to_all(pages[kPage], kStart);
  for (Nanos now = kStart; now < kStart + 40h; now += 1min) {
    const Nanos last = remembered(pages, now);
    ASSERT_LE(last, kStart) << now.count();
    ASSERT_TRUE(last == kNever || last > kStart - kUnit) << now.count();
  }
  EXPECT_EQ(pages.last_multicast(pages[kPage]), kNever);
  EXPECT_TRUE(PageTable::was_multicast(pages[kPage]));
}

TEST(PageTable, TimesAreRightAfterEachMoveOfTheStart) {
  PageTable pages{10};
  for (Nanos now = kStart; now < kStart + 40h; now += 13min) {
    pages.age(now);
    pages.went_to_all(pages[kPage], now);
    const Nanos later = now + 1h;  // far enough to move the start now and then
    const Nanos last = remembered(pages, later);
    ASSERT_LE(last, now);
    ASSERT_GT(last, now - 2 * kUnit);
    now = later;
  }
}

TEST(PageTable, AStandstillOfDaysIsNoTrouble) {
  PageTable pages{10};
  pages.age(kStart);
  pages.went_to_all(pages[kPage], kStart);
  EXPECT_EQ(remembered(pages, kStart + 100 * 24h), kNever);
  pages.went_to_all(pages[kPage], kStart + 100 * 24h);
  EXPECT_GT(remembered(pages, kStart + 100 * 24h), kStart + 100 * 24h - kUnit);
}

TEST(PageTable, TimeMayBeginAtZero) {
  PageTable pages{10};
  pages.age(0s);
  pages.went_to_all(pages[kPage], 0s);
  EXPECT_LE(remembered(pages, 1ms), 0s);
  EXPECT_GT(remembered(pages, 1ms), -2 * kUnit);
}

}  // namespace
}  // namespace snowfabric
