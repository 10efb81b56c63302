// SPDX-License-Identifier: BSD-3-Clause
// A host that keeps pages: for clones that come later, and the working set of earlier ones.
#include <gmock/gmock.h>

#include "memtap-dpdk/host.hpp"
#include "tests/unit/engine_harness.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric {
namespace {

using test::FakeGuest;
using testing::ElementsAre;
using testing::IsEmpty;
using Ranges = std::vector<PageRange>;

constexpr std::uint64_t kPages = 1024;

struct KeptHost : testing::Test {
  void SetUp() override {
    client.join(kPages);
    auto made = KeptImage::create({.image_id = 7, .nb_pages = kPages, .epoch = 1});
    if (!made && made.error().errnum == EPERM) GTEST_SKIP() << "userfaultfd(2) is not permitted";
    ASSERT_TRUE(made) << made.error().what;
    kept = std::move(*made);
    host = std::make_unique<Host>(client.engine, stats, 0, 64, kept.get());
  }

  unsigned poll() { return host->poll_faults(client.now); }
  void page_comes(std::uint64_t gfn) {
    ASSERT_TRUE(host->needs(Gfn{gfn}));
    const auto arrival = client.page(gfn);
    ASSERT_TRUE(arrival);
    host->on_page(*arrival, client.now);
    host->flush(client.now);
  }
  void zeros_come(PageRange range) {
    client.engine.take_range(wire::FrameType::kZeros, range, client.now);
    host->on_zeros(range, client.now);
  }
  static void expect_page(const FakeGuest& guest, std::uint64_t gfn) {
    EXPECT_TRUE(guest.has(gfn));
    EXPECT_TRUE(std::ranges::equal(guest.page(gfn), test::page_bytes(gfn))) << gfn;
  }

  test::TestClient client;
  HostStats stats;
  std::unique_ptr<KeptImage> kept;
  std::unique_ptr<Host> host;
  FakeGuest a{kPages}, b{kPages};
};

TEST_F(KeptHost, ACloneThatComesLaterIsServedWithoutTheWire) {
  host->attach(a);
  a.touch(5);
  poll();
  client.send_wants();
  page_comes(5);
  host->attach(b);
  b.touch(5);
  poll();
  expect_page(b, 5);
  EXPECT_THAT(client.send_wants(), IsEmpty());
  EXPECT_EQ(stats.fault_hits_kept.read(), 1U);
}

TEST_F(KeptHost, PagesAreKeptBeforeThereIsAGuest) {
  page_comes(5);  // others asked for it
  EXPECT_FALSE(host->needs(Gfn{5}));
  host->attach(a);
  a.touch(5);
  poll();
  expect_page(a, 5);
}

TEST_F(KeptHost, ZeroPagesAreKnownToLaterClones) {
  host->attach(a);
  zeros_come({Gfn{10}, 5});
  host->attach(b);
  b.touch(12);
  poll();
  EXPECT_TRUE(b.has(10) && b.has(14));
  EXPECT_THAT(client.send_wants(), IsEmpty());
}

TEST_F(KeptHost, AnInstallPutOffIsRepeatedFromWhatIsKept) {
  page_comes(5);
  host->attach(a);
  a.touch(5);
  a.verdicts = {Install::kAgain};
  poll();
  EXPECT_TRUE(a.anybody_waits());
  client.now += std::chrono::milliseconds{6};
  poll();
  expect_page(a, 5);
  EXPECT_THAT(client.send_wants(), IsEmpty());
}

TEST_F(KeptHost, EveryVcpuThatWaitsInARunOfZerosThatWasPutOffIsAnswered) {
  host->attach(a);
  for (const std::uint64_t gfn : {10U, 990U}) a.touch(gfn);
  poll();
  a.verdicts = {Install::kNoMemory};
  zeros_come({Gfn{0}, 1000});
  EXPECT_TRUE(a.anybody_waits());
  client.now += std::chrono::milliseconds{6};
  poll();
  EXPECT_FALSE(a.anybody_waits());
}

TEST_F(KeptHost, AGuestThatCannotTakeItsPageHoldsUpNoOther) {
  for (const std::uint64_t gfn : {5U, 6U}) page_comes(gfn);
  host->attach(b);
  host->attach(a);
  b.touch(6);
  a.touch(5);
  b.verdicts = {Install::kAgain};
  a.verdicts = std::deque<Install>(100, Install::kNoMemory);
  poll();
  EXPECT_TRUE(b.anybody_waits());
  client.now += std::chrono::milliseconds{6};
  poll();
  expect_page(b, 6);
  EXPECT_TRUE(a.anybody_waits());
}

TEST_F(KeptHost, AGuestShortOfMemoryGetsTheRestOfTheWorkingSetLater) {
  host->load(Ranges{{Gfn{50}, 2}}, client.now);
  for (const std::uint64_t gfn : {50U, 51U}) page_comes(gfn);
  host->attach(a);
  a.verdicts = {Install::kNoMemory};
  poll();
  poll();
  EXPECT_TRUE(a.has(50) && a.has(51));
}

TEST_F(KeptHost, AGuestIsCompletedFromWhatIsKept) {
  page_comes(5);
  zeros_come({Gfn{6}, kPages - 6});
  host->attach(a);
  zeros_come({Gfn{0}, 5});
  a.verdicts = {Install::kAgain};
  host->complete(a);
  poll();
  EXPECT_TRUE(host->completing(a));
  for (int i = 0; i < 3; ++i) poll();
  EXPECT_FALSE(host->completing(a));
  expect_page(a, 5);
  EXPECT_THAT(client.send_wants(), IsEmpty());
}

TEST_F(KeptHost, TheRecordHasEachPageOnceInTheOrderOfTheFirstTouch) {
  host->attach(a);
  host->attach(b);
  for (const std::uint64_t gfn : {9U, 7U, 8U}) a.touch(gfn);
  b.touch(7);
  b.touch(3);
  poll();
  page_comes(9);
  page_comes(7);
  EXPECT_THAT(host->recorded(),
              ElementsAre(PageRange{Gfn{9}, 1}, PageRange{Gfn{7}, 2}, PageRange{Gfn{3}, 1}));
  EXPECT_EQ(stats.recorded_pages.read(), 4U);
}

TEST_F(KeptHost, WhatOthersFetchedIsNotRecordedWhileThereIsNoGuest) {
  page_comes(5);
  EXPECT_THAT(host->recorded(), IsEmpty());
}

TEST_F(KeptHost, AWorkingSetIsFetchedWithoutAGuestAndGivenBeforeItIsAskedFor) {
  host->load(Ranges{{Gfn{50}, 2}, {Gfn{10}, 1}}, client.now);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), 3U);
  for (const std::uint64_t gfn : {50U, 51U, 10U}) page_comes(gfn);
  host->attach(a);
  poll();
  for (const std::uint64_t gfn : {50U, 51U, 10U}) expect_page(a, gfn);
  EXPECT_EQ(stats.loaded_pages.read(), 3U);
}

TEST_F(KeptHost, AWorkingSetIsFetchedWhenItsTimeHasComeOrThereIsAGuest) {
  host->load(Ranges{{Gfn{50}, 2}}, client.now + std::chrono::seconds{1});
  poll();
  EXPECT_THAT(client.send_wants(), IsEmpty());
  page_comes(50);  // another host asked for it
  host->attach(a);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), 1U);
}

TEST_F(KeptHost, AWorkingSetUnderWayGoesToItsGuestsAsItComes) {
  host->load(Ranges{{Gfn{50}, 2}}, client.now);
  poll();
  page_comes(51);
  host->attach(a);
  poll();
  EXPECT_TRUE(a.has(51));
  page_comes(50);
  expect_page(a, 50);
}

TEST_F(KeptHost, AGuestThatCannotTakeMoreGetsTheRestOfTheWorkingSetLater) {
  host->load(Ranges{{Gfn{50}, 3}}, client.now);
  for (const std::uint64_t gfn : {50U, 51U, 52U}) page_comes(gfn);
  host->attach(a);
  a.verdicts = {Install::kDone, Install::kAgain};
  poll();
  EXPECT_TRUE(a.has(50) && !a.has(51));
  poll();
  EXPECT_TRUE(a.has(51) && a.has(52));
}

TEST_F(KeptHost, WhatAGuestCouldNotTakeOfTheWorkingSetAsItCameItGetsLater) {
  host->load(Ranges{{Gfn{50}, 3}}, client.now);
  host->attach(a);
  poll();  // nothing is known yet
  page_comes(50);
  a.verdicts = {Install::kAgain};
  page_comes(51);
  EXPECT_TRUE(a.has(50) && !a.has(51));
  poll();
  EXPECT_TRUE(a.has(51));
  page_comes(52);
  expect_page(a, 52);
}

TEST_F(KeptHost, AGuestThatLeavesWhileItIsLoadedIsForgotten) {
  host->load(Ranges{{Gfn{50}, 3}}, client.now);
  for (const std::uint64_t gfn : {50U, 51U, 52U}) page_comes(gfn);
  host->attach(a);
  host->detach(a);
  poll();
  EXPECT_THAT(a.calls, IsEmpty());
}

TEST_F(KeptHost, ARecordGoesOnFromTheWorkingSetThatWasLoaded) {
  host->load(Ranges{{Gfn{50}, 2}, {Gfn{kPages - 1}, 7}}, client.now);
  host->attach(a);
  a.touch(3);
  poll();
  EXPECT_THAT(host->recorded(), ElementsAre(PageRange{Gfn{50}, 2}, PageRange{Gfn{kPages - 1}, 1},
                                            PageRange{Gfn{3}, 1}));
}

}  // namespace
}  // namespace snowfabric
