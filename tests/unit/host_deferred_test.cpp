// SPDX-License-Identifier: BSD-3-Clause
// What a host cannot do at once: faults the request table has no room for, installs put off.
#include "tests/unit/host_fixture.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::FakeGuest;
using test::HostTest;
using test::kPages;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// --- faults --------------------------------------------------------------------------------------

TEST_F(HostTest, FaultsTheTableHasNoRoomForAreAskedForLater) {
  ClientConfig config = test::TestClient::defaults();
  config.max_inflight = 2;
  test::TestClient small{config};
  small.join(kPages);
  Host narrow{small.engine, stats, 0, 4};
  narrow.attach(a);
  for (const std::uint64_t gfn : {1U, 2U, 3U, 4U}) a.touch(gfn);
  EXPECT_EQ(narrow.poll_faults(small.now), 4U);
  EXPECT_EQ(stats.wants_deferred.read(), 2U);
  for (int turn = 0; turn < 4 && a.anybody_waits(); ++turn) {
    for (const std::uint64_t gfn : {1U, 2U, 3U, 4U})
      if (small.engine.in_flight(Gfn{gfn})) narrow.on_page(*small.page(gfn), small.now);
    narrow.poll_faults(small.now);
  }
  for (const std::uint64_t gfn : {1U, 2U, 3U, 4U}) expect_page(a, gfn);
}

TEST_F(HostTest, ADeferredFaultWhosePageCameMeanwhileIsNotAskedFor) {
  ClientConfig config = test::TestClient::defaults();
  config.max_inflight = 1;
  test::TestClient small{config};
  small.join(kPages);
  Host narrow{small.engine, stats, 0, 4};
  narrow.attach(a);
  a.touch(1);
  a.touch(2);
  narrow.poll_faults(small.now);
  narrow.on_page(*small.page(2), small.now);  // others asked for it
  narrow.flush(small.now);
  narrow.on_page(*small.page(1), small.now);
  narrow.poll_faults(small.now);
  EXPECT_EQ(small.engine.nb_in_flight(), 0U);
  EXPECT_FALSE(a.anybody_waits());
}

/// As many faults as it likes, for pages that it never takes.
TEST_F(HostTest, AGuestThatTakesNoPageKeepsNoOtherFromItsOwn) {
  constexpr std::uint64_t kMany = 16 * 1024;
  test::TestClient big;
  big.join(kMany);
  FakeGuest hog{kMany}, other{kMany};
  Host wide{big.engine, stats, 0, 4};
  wide.attach(hog);
  wide.attach(other);
  for (std::uint64_t gfn = 0; gfn < kMany - 1; ++gfn) hog.touch(gfn);
  const auto turn = [&] {
    wide.poll_faults(big.now);
    std::vector<std::uint64_t> asked;
    big.engine.for_each_demand([&](Gfn page) {
      if (asked.size() < 32) asked.push_back(page.value);  // the server has other hosts, too
    });
    for (const std::uint64_t gfn : asked) {
      if (gfn != kMany - 1) hog.verdicts = {Install::kAgain};
      wide.on_page(*big.page(gfn), big.now);
    }
    big.now += 1ms;
  };
  for (int i = 0; i < 300; ++i) turn();
  other.touch(kMany - 1);
  for (int i = 0; i < 300 && other.anybody_waits(); ++i) turn();
  EXPECT_TRUE(other.has(kMany - 1));
}

/// Room in the table of requests goes round.
TEST_F(HostTest, AGuestWithManyDeferredFaultsLetsOthersHaveTheirTurn) {
  ClientConfig config = test::TestClient::defaults();
  config.max_inflight = 1;
  test::TestClient small{config};
  small.join(kPages);
  Host narrow{small.engine, stats, 0, 4};
  narrow.attach(a);
  narrow.attach(b);
  for (std::uint64_t gfn = 0; gfn < 64; ++gfn) a.touch(gfn);
  narrow.poll_faults(small.now);
  b.touch(99);
  for (int turn = 0; turn < 4 && !b.has(99); ++turn) {
    narrow.poll_faults(small.now);
    std::uint64_t asked = 0;
    small.engine.for_each_demand([&](Gfn page) { asked = page.value; });
    narrow.on_page(*small.page(asked), small.now);
  }
  EXPECT_TRUE(b.has(99));
}

// --- installs that are put off -------------------------------------------------------------------

struct PutOff : HostTest, testing::WithParamInterface<Install> {};

TEST_P(PutOff, ADemandedPageIsAskedForAgainAndThenInstalled) {
  host.attach(a);
  a.touch(5);
  poll();
  client.send_wants();
  a.verdicts = {GetParam()};
  page_comes(5);
  EXPECT_TRUE(a.anybody_waits());
  poll();
  EXPECT_THAT(demands(), IsEmpty());  // at once it would find the guest as it is
  client.now += 5ms;
  poll();
  EXPECT_THAT(demands(), ElementsAre(5));
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  page_comes(5);
  expect_page(a, 5);
  EXPECT_EQ(stats.refetched_pages.read(), 1U);
}

TEST_P(PutOff, OthersAfterItDoNotPutOffAPageAnyLonger) {
  host.attach(a);
  for (const std::uint64_t gfn : {5U, 6U}) a.touch(gfn);
  poll();
  for (const std::uint64_t gfn : {5U, 6U}) {
    a.verdicts = {GetParam()};
    page_comes(gfn);
    client.now += 4ms;
  }
  poll();
  EXPECT_THAT(demands(), testing::UnorderedElementsAre(5, 6));
}

TEST_P(PutOff, ADemandedPageInAZeroRunIsServedThoughManyRunsWerePutOffBefore) {
  constexpr std::uint64_t kMany = 64 * 1024;
  test::TestClient big;
  big.join(kMany);
  FakeGuest guest{kMany};
  Host wide{big.engine, stats, 0, 4};
  wide.attach(guest);
  const auto zeros = [&](std::uint64_t first) {
    const PageRange run{Gfn{first}, wire::kMaxRangePages};
    big.engine.take_range(wire::FrameType::kZeros, run, big.now);
    wide.on_zeros(run, big.now);
  };
  guest.touch(kMany - 1);
  wide.poll_faults(big.now);
  guest.verdicts.assign(16, GetParam());  // a REMOVE waits to be read through a whole burst
  for (std::uint64_t first = 0; first < kMany; first += wire::kMaxRangePages) zeros(first);
  big.send_wants();
  // Only what somebody waits for is asked for again, not the pages of every run.
  EXPECT_EQ(stats.refetched_pages.read(), 1U);
  big.now += 5ms;
  wide.poll_faults(big.now);
  for (std::uint64_t first = 0; first < kMany; first += wire::kMaxRangePages)
    for (std::uint64_t p = first; p < first + wire::kMaxRangePages; ++p)
      if (big.engine.in_flight(Gfn{p})) {
        zeros(first);
        break;
      }
  EXPECT_FALSE(guest.anybody_waits());
}

INSTANTIATE_TEST_SUITE_P(Host, PutOff, testing::Values(Install::kAgain, Install::kNoMemory));

}  // namespace
}  // namespace snowfabric
