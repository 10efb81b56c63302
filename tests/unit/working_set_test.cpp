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
using testing::IsEmpty;
using testing::Optional;
constexpr std::uint64_t kStep = WorkingSet::kMarkerStep;
constexpr std::uint64_t kLead = WorkingSet::kLead;

TEST(WorkingSet, KnowsThePlaceOfEachOfItsPages) {
  const WorkingSet set{{{Gfn{50}, 2}, {Gfn{7}, 1}, {Gfn{60}, 3}}};
  EXPECT_EQ(set.nb_pages(), 6U);
  EXPECT_THAT(set.find(Gfn{50}), Optional(0U));
  EXPECT_THAT(set.find(Gfn{51}), Optional(1U));
  EXPECT_THAT(set.find(Gfn{7}), Optional(2U));
  EXPECT_THAT(set.find(Gfn{62}), Optional(5U));
  for (const std::uint64_t gfn : {0U, 6U, 8U, 49U, 52U, 59U, 63U})
    EXPECT_EQ(set.find(Gfn{gfn}), std::nullopt) << gfn;
}

TEST(WorkingSet, KnowsNoPageOfAnEmptyOne) { EXPECT_EQ(WorkingSet{}.find(Gfn{0}), std::nullopt); }

TEST(WorkingSet, IsWalkedInItsOrder) {
  const WorkingSet set{{{Gfn{50}, 2}, {Gfn{7}, 1}}};
  std::vector<std::uint64_t> seen;
  for (WorkingSet::Cursor at; at.place < set.nb_pages(); set.advance(at))
    seen.push_back(set.page(at).value);
  EXPECT_THAT(seen, testing::ElementsAre(50, 51, 7));
}

/// A host whose working set is the image from its end to its beginning, two pages at a time.
struct Lead : testing::Test {
  static constexpr std::uint64_t kPages = 1024;

  /// The page at a place of the order.
  static std::uint64_t at(std::uint64_t place) { return kPages - 2 - place / 2 * 2 + place % 2; }

  void make_host(bool kept_pages) {
    client.join(kPages);
    if (kept_pages) {
      auto made = KeptImage::create({.image_id = 7, .nb_pages = kPages, .epoch = 1});
      if (!made && made.error().errnum == EPERM) GTEST_SKIP() << "userfaultfd(2) is not permitted";
      ASSERT_TRUE(made) << made.error().what;
      kept = std::move(*made);
    }
    host = std::make_unique<Host>(client.engine, stats, 8, 64, kept.get());
    std::vector<PageRange> order;
    for (std::uint64_t first = kPages; first > 0; first -= 2) order.push_back({Gfn{first - 2}, 2});
    host->load(order, client.now + std::chrono::seconds{2});
  }
  void keep_all() {
    for (std::uint64_t gfn = 0; gfn < kPages; ++gfn) {
      const auto arrival = client.page(gfn);
      ASSERT_TRUE(arrival);
      host->on_page(*arrival, client.now);
    }
    host->flush(client.now);
  }
  void poll() {
    for (int i = 0; i < 8; ++i) host->poll_faults(client.now);
  }
  void touch(std::uint64_t place) {
    a.touch(at(place));
    poll();
  }
  void expect_given_until(std::uint64_t end) {
    for (std::uint64_t place = 0; place < kPages; ++place)
      EXPECT_EQ(a.has(at(place)), place < end && (place == 0 || place % kStep != 0)) << place;
  }

  test::TestClient client;
  HostStats stats;
  std::unique_ptr<KeptImage> kept;
  std::unique_ptr<Host> host;
  FakeGuest a{kPages};
};

TEST_F(Lead, AGuestIsGivenTheFirstPagesButTheMarkers) {
  make_host(true);
  keep_all();
  host->attach(a);
  poll();
  expect_given_until(kLead);
}

TEST_F(Lead, AMarkerTouchedBringsTheNextPages) {
  make_host(true);
  keep_all();
  host->attach(a);
  poll();
  touch(kStep);
  for (std::uint64_t place = kLead + 1; place < kLead + kStep; ++place)
    EXPECT_TRUE(a.has(at(place))) << place;
  EXPECT_FALSE(a.has(at(kLead)));
  EXPECT_FALSE(a.has(at(kLead + kStep + 1)));
}

TEST_F(Lead, AGuestThatSkipsSomeIsGivenWhatLiesBetweenToo) {
  make_host(true);
  keep_all();
  host->attach(a);
  touch(kPages / 2 + 1);
  for (const std::uint64_t place : {kLead + 1, kPages / 2 - 1, kPages / 2 + kLead - 1})
    EXPECT_TRUE(a.has(at(place))) << place;
  EXPECT_FALSE(a.has(at(kPages / 2 + kLead + 1)));
}

TEST_F(Lead, OnlyWhatTheFirstGuestIsGivenIsFetchedBeforeItsTime) {
  make_host(true);
  host->attach(a);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead - 1);  // a marker is left out
  EXPECT_FALSE(client.engine.in_flight(Gfn{at(kStep)}));
  EXPECT_TRUE(client.engine.in_flight(Gfn{at(kLead - 1)}));
}

TEST_F(Lead, WithoutAGuestAllIsFetchedAtItsTime) {
  make_host(true);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), 0U);
  client.now += std::chrono::seconds{2};
  poll();
  EXPECT_TRUE(client.engine.in_flight(Gfn{at(kStep)}));
  EXPECT_TRUE(client.engine.in_flight(Gfn{at(kLead + kStep + 1)}));
}

TEST_F(Lead, WhereNothingIsKeptPagesAreFetchedForTheGuestThatIsThere) {
  make_host(false);
  host->attach(a);
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead - 1);
  a.touch(at(kStep));
  poll();
  EXPECT_EQ(client.engine.nb_in_flight(), kLead + kStep - 1);
}

TEST_F(Lead, AFaultInTheWorkingSetAsksForNoNeighbours) {
  client.join(kPages);
  Host alone{client.engine, stats, 8, 64};
  alone.load(std::vector{PageRange{Gfn{50}, 1}}, client.now);
  alone.attach(a);
  a.touch(50);
  alone.poll_faults(client.now);
  EXPECT_EQ(client.engine.nb_in_flight(), 1U);
  a.touch(60);
  alone.poll_faults(client.now);
  EXPECT_GT(client.engine.nb_in_flight(), 2U);
}

}  // namespace
}  // namespace snowfabric
