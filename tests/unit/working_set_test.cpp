// SPDX-License-Identifier: BSD-3-Clause
// The order in which earlier clones touched pages, and the lead that a clone gets in it.
#include "memtap-dpdk/working_set.hpp"

#include <gmock/gmock.h>

#include "memtap-dpdk/host.hpp"
#include "tests/unit/engine_harness.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric {
namespace {

using test::FakeGuest;
using testing::ElementsAre;
constexpr std::uint64_t kStep = WorkingSet::kMarkerStep;
constexpr std::uint64_t kLead = WorkingSet::kLead;

TEST(WorkingSet, KnowsThePlaceOfEachOfItsPages) {
  const WorkingSet set{{{Gfn{50}, 2}, {Gfn{7}, 1}, {Gfn{60}, 3}}};
  EXPECT_EQ(set.nb_pages(), 6U);
  const std::vector<std::uint64_t> order{50, 51, 7, 60, 61, 62};
  for (std::uint64_t place = 0; place < order.size(); ++place) {
    const auto found = set.find(Gfn{order[place]});
    ASSERT_TRUE(found) << place;
    EXPECT_EQ(*found, place);
  }
  for (const std::uint64_t gfn : {0U, 6U, 8U, 49U, 52U, 59U, 63U})
    EXPECT_EQ(set.find(Gfn{gfn}), std::nullopt) << gfn;
}

TEST(WorkingSet, KnowsNoPageOfAnEmptyOne) { EXPECT_EQ(WorkingSet{}.find(Gfn{0}), std::nullopt); }

TEST(WorkingSet, IsWalkedInItsOrder) {
  const WorkingSet set{{{Gfn{50}, 2}, {Gfn{7}, 1}}};
  std::vector<std::uint64_t> seen;
  for (WorkingSet::Cursor at; at.place < set.nb_pages(); set.advance(at))
    seen.push_back(set.page(at).value);
  EXPECT_THAT(seen, ElementsAre(50, 51, 7));
}

constexpr std::uint64_t kPages = 1024;

/// The page at a place of the order of the tests below: from the image's end, two pages at a time.
constexpr std::uint64_t at(std::uint64_t place) { return kPages - 2 - place / 2 * 2 + place % 2; }

std::vector<PageRange> backwards() {
  std::vector<PageRange> order;
  for (std::uint64_t first = kPages; first > 0; first -= 2) order.push_back({Gfn{first - 2}, 2});
  return order;
}

/// A host whose working set is the image backwards, where nothing is kept.
struct LeadAlone : testing::Test {
  void SetUp() override {
    client.join(kPages);
    make_host();
  }
  void make_host() {
    host = std::make_unique<Host>(client.engine, stats, 8, 64, kept.get());
    host->load(backwards(), client.now + kRestAt);
  }
  void poll() {
    for (int i = 0; i < 8; ++i) host->poll_faults(client.now);
  }
  void touch(FakeGuest& guest, std::uint64_t place) {
    guest.touch(at(place));
    poll();
  }
  bool in_flight(std::uint64_t place) const { return client.engine.in_flight(Gfn{at(place)}); }

  static constexpr Nanos kRestAt = std::chrono::seconds{2};
  test::TestClient client;
  HostStats stats;
  std::unique_ptr<KeptImage> kept;
  std::unique_ptr<Host> host;
  FakeGuest a{kPages}, b{kPages};
};

/// The same where pages are kept.
struct Lead : LeadAlone {
  void SetUp() override {
    client.join(kPages);
    auto made = KeptImage::create({.image_id = 7, .nb_pages = kPages, .epoch = 1});
    if (!made && made.error().errnum == EPERM) GTEST_SKIP() << "userfaultfd(2) is not permitted";
    ASSERT_TRUE(made) << made.error().what;
    kept = std::move(*made);
    make_host();
  }
  void keep_all() {
    for (std::uint64_t gfn = 0; gfn < kPages; ++gfn) {
      const auto arrival = client.page(gfn);
      ASSERT_TRUE(arrival);
      host->on_page(*arrival, client.now);
    }
    host->flush(client.now);
  }
  static void expect_has(const FakeGuest& guest, std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t place = begin; place < end; ++place)
      EXPECT_EQ(guest.has(at(place)), place == 0 || place % kStep != 0) << place;
  }
  static void expect_lacks(const FakeGuest& guest, std::uint64_t begin, std::uint64_t end) {
    for (std::uint64_t place = begin; place < end; ++place)
      EXPECT_FALSE(guest.has(at(place))) << place;
  }
};

TEST_F(Lead, AGuestIsGivenTheFirstPagesButTheMarkers) {
  keep_all();
  host->attach(a);
  poll();
  expect_has(a, 0, kLead);
  expect_lacks(a, kLead, kPages);
}

TEST_F(Lead, AMarkerTouchedIsAnsweredAndBringsTheNextPages) {
  keep_all();
  host->attach(a);
  poll();
  touch(a, kStep);
  EXPECT_TRUE(a.has(at(kStep)));
  expect_has(a, kStep + 1, kStep + kLead);
  expect_lacks(a, kStep + kLead, kPages);
}

TEST_F(Lead, TheLastPagesAreGivenWithTheirMarkers) {
  keep_all();
  host->attach(a);
  poll();
  const std::uint64_t near_end = kPages - kLead;
  touch(a, near_end);
  for (std::uint64_t place = near_end; place < kPages; ++place) EXPECT_TRUE(a.has(at(place)));
}

TEST_F(Lead, AGuestThatTouchesAPageFarAheadIsGivenWhatLiesBetweenToo) {
  keep_all();
  host->attach(a);
  poll();
  const std::uint64_t far = 10 * kStep + 1;
  touch(a, far);
  expect_has(a, 0, far + kLead);
  expect_lacks(a, far + kLead, kPages);
}

TEST_F(Lead, WhatOnlyLoadsDeviceStateHasNone) {
  keep_all();
  a.loads = true;
  host->attach(a);
  touch(a, 10 * kStep + 1);
  EXPECT_TRUE(a.has(at(10 * kStep + 1)));
  expect_lacks(a, 0, 10 * kStep + 1);
}

TEST_F(Lead, EachGuestHasItsOwn) {
  keep_all();
  host->attach(a);
  host->attach(b);
  poll();
  touch(a, kStep);
  expect_has(a, kStep + 1, kStep + kLead);
  expect_lacks(b, kLead, kPages);
}

TEST_F(Lead, OnlyWhatAGuestIsAboutToBeGivenIsFetchedAtFirst) {
  host->attach(a);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead - 1);
  EXPECT_FALSE(in_flight(kStep));  // the marker
  EXPECT_TRUE(in_flight(kLead - 1));
}

TEST_F(Lead, TheRestIsFetchedAtItsTimeMarkersToo) {
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), 0U);
  client.now += kRestAt;
  poll();
  EXPECT_TRUE(in_flight(kStep));
  EXPECT_TRUE(in_flight(kLead + kStep));
}

TEST_F(LeadAlone, TheRestWaitsWhileALeadMoves) {
  host->attach(a);
  client.now += kRestAt - std::chrono::milliseconds{1};
  touch(a, kStep);
  client.now += std::chrono::milliseconds{2};
  poll();
  EXPECT_FALSE(in_flight(5 * kStep));
  client.now += kRestAt;
  poll();
  EXPECT_TRUE(in_flight(5 * kStep));
}

TEST_F(LeadAlone, AListOfPagesToFetchComesBehindTheWorkingSet) {
  Host other{client.engine, stats, 0, 64};
  other.load(std::vector{PageRange{Gfn{0}, 200}}, client.now + kRestAt);
  other.prefetch(std::vector{PageRange{Gfn{500}, 1}});
  other.attach(a);
  other.poll_faults(client.now);
  EXPECT_FALSE(client.engine.in_flight(Gfn{500}));
  client.now += kRestAt;
  other.poll_faults(client.now);
  EXPECT_TRUE(client.engine.in_flight(Gfn{500}));
}

TEST_F(LeadAlone, EveryGuestsLeadIsFetched) {
  host->attach(a);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead - 1);
  for (std::uint64_t place = 0; place < kPages; ++place)
    if (in_flight(place)) {
      const auto arrival = client.page(at(place));
      ASSERT_TRUE(arrival);
      host->on_page(*arrival, client.now);
    }
  host->flush(client.now);
  host->detach(a);
  host->attach(b);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead - 1);
}

TEST_F(LeadAlone, AFaultInALeadAsksForNoNeighboursAndOneElsewhereDoes) {
  client.join(kPages);
  Host other{client.engine, stats, 8, 64};
  other.load(std::vector{PageRange{Gfn{50}, 1}}, client.now);
  other.attach(a);
  a.touch(50);
  other.poll_faults(client.now);
  EXPECT_EQ(client.engine.nb_in_flight(), 1U);
  a.touch(60);
  other.poll_faults(client.now);
  EXPECT_GT(client.engine.nb_in_flight(), 2U);
}

TEST_F(LeadAlone, AListThatNamesPagesTwiceIsTakenAsTheirFirstPlaces) {
  Host other{client.engine, stats, 8, 64};
  other.load(std::vector{PageRange{Gfn{0}, 400}, PageRange{Gfn{10}, 1}}, client.now + kRestAt);
  other.attach(a);
  a.touch(300);
  other.poll_faults(client.now);
  other.poll_faults(client.now);
  EXPECT_TRUE(client.engine.in_flight(Gfn{301}) && client.engine.in_flight(Gfn{395}));
}

}  // namespace
}  // namespace snowfabric
