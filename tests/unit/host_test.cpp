// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/host.hpp"

#include <gmock/gmock.h>

#include "tests/unit/engine_harness.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::FakeGuest;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Calls = std::vector<FakeGuest::Call>;

constexpr std::uint64_t kPages = 1024;

/// A host whose engine has joined; frames go the way the worker sends them.
struct HostTest : testing::Test {
  void SetUp() override { client.join(kPages); }

  unsigned poll() { return host.poll_faults(client.now); }
  void page_comes(std::uint64_t gfn) {
    if (!host.needs(Gfn{gfn})) {
      client.engine.forget(Gfn{gfn});
      return;
    }
    const auto arrival = client.page(gfn);
    ASSERT_TRUE(arrival);
    host.on_page(*arrival, client.now);
  }
  void zeros_come(PageRange range) {
    client.engine.take_range(wire::FrameType::kZeros, range, client.now);
    host.on_zeros(range, client.now);
  }
  void server_dies() {
    client.now += 11s;
    client.send();
    ASSERT_EQ(client.engine.state(), ClientState::kServerDead);
  }
  [[nodiscard]] std::vector<std::uint64_t> demands() const {
    std::vector<std::uint64_t> pages;
    client.engine.for_each_demand([&](Gfn page) { pages.push_back(page.value); });
    return pages;
  }
  static void expect_page(const FakeGuest& guest, std::uint64_t gfn) {
    EXPECT_TRUE(guest.has(gfn));
    EXPECT_TRUE(std::ranges::equal(guest.page(gfn), test::page_bytes(gfn))) << gfn;
  }

  test::TestClient client;
  HostStats stats;
  Host host{client.engine, stats, 0, 4};
  FakeGuest a{kPages}, b{kPages};
};

// --- faults ------------------------------------------------------------------------------------

TEST_F(HostTest, SeveralGuestsOnOnePageMakeOneRequestAndAllGetThePage) {
  host.attach(a);
  host.attach(b);
  a.touch(5);
  b.touch(5);
  EXPECT_EQ(poll(), 2U);
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  page_comes(5);
  expect_page(a, 5);
  expect_page(b, 5);
  EXPECT_FALSE(a.anybody_waits() || b.anybody_waits());
}

TEST_F(HostTest, AFaultOnAGatheredPageIsAnsweredFromTheBufferWithoutARequest) {
  host.attach(a);
  page_comes(5);  // nobody asked
  EXPECT_FALSE(a.has(5));
  a.touch(5);
  poll();
  expect_page(a, 5);
  EXPECT_THAT(client.send_wants(), IsEmpty());
  EXPECT_EQ(stats.fault_hits_buffer.read(), 1U);
}

TEST_F(HostTest, NeighboursArePrefetchedMoreTheLongerFaultsComeInARow) {
  Host eager{client.engine, stats, 4, 4};
  eager.attach(a);
  const auto wanted_with = [&](std::uint64_t page) {
    const std::uint64_t before = stats.prefetch_wanted.read();
    a.touch(page);
    eager.poll_faults(client.now);
    return stats.prefetch_wanted.read() - before;
  };
  EXPECT_EQ(wanted_with(0), 1U);
  EXPECT_EQ(wanted_with(2), 2U);
  EXPECT_EQ(wanted_with(5), 4U);
  EXPECT_EQ(wanted_with(10), 4U) << "no more than was said";
  EXPECT_EQ(wanted_with(20), 1U) << "not in a row";
}

TEST_F(HostTest, NeighboursArePrefetchedUpToTheEndOfTheImage) {
  Host eager{client.engine, stats, 8, 4};
  eager.attach(a);
  for (const std::uint64_t page : {kPages - 4, kPages - 2}) {
    a.touch(page);
    eager.poll_faults(client.now);
  }
  std::uint64_t nb_pages = 0;
  for (const auto& want : client.send_wants()) nb_pages += want.nb_pages.host();
  EXPECT_EQ(nb_pages, 4U);  // two and one behind each
  EXPECT_EQ(stats.prefetch_wanted.read(), 2U);
}

TEST_F(HostTest, NeighboursThatArePresentOrGatheredAreNotPrefetched) {
  Host eager{client.engine, stats, 4, 4};
  eager.attach(a);
  const test::Bytes bytes = test::page_bytes(11);
  a.install(Gfn{11}, bytes);
  const auto arrival = client.page(12);
  eager.on_page(*arrival, client.now);  // gathered
  for (const std::uint64_t page : {5U, 7U}) {
    a.touch(page);
    eager.poll_faults(client.now);
  }
  client.send_wants();
  a.touch(10);  // the third in a row
  eager.poll_faults(client.now);
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(2));
  EXPECT_EQ(wants[0].first.host(), 10U);
  EXPECT_EQ(wants[1].first.host(), 13U);
  EXPECT_EQ(wants[1].nb_pages.host(), 2U);
}

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

// --- arrivals ----------------------------------------------------------------------------------

TEST_F(HostTest, ADemandedPageIsInstalledAtOnceAndFlushesWhatGathered) {
  host.attach(a);
  a.touch(5);
  poll();
  page_comes(21);
  page_comes(20);
  EXPECT_THAT(a.calls, IsEmpty());
  page_comes(5);
  EXPECT_EQ(a.calls, (Calls{{5, 1}, {20, 2}}));
  EXPECT_FALSE(host.has_gathered());
}

TEST_F(HostTest, UnaskedPagesGatherUntilTheBufferIsFull) {
  host.attach(a);
  for (const std::uint64_t gfn : {30U, 31U, 32U, 33U}) page_comes(gfn);
  EXPECT_THAT(a.calls, IsEmpty());
  EXPECT_FALSE(host.needs(Gfn{31}));  // a second copy would be a duplicate
  page_comes(34);
  EXPECT_EQ(a.calls, (Calls{{30, 4}}));
  EXPECT_TRUE(host.has_gathered());  // page 34 waits
  host.flush(client.now);
  for (std::uint64_t gfn = 30; gfn < 35; ++gfn) expect_page(a, gfn);
}

TEST_F(HostTest, APageThatEveryGuestHasIsNotNeeded) {
  host.attach(a);
  EXPECT_TRUE(host.needs(Gfn{5}));
  const test::Bytes bytes = test::page_bytes(5);
  a.install(Gfn{5}, bytes);
  EXPECT_FALSE(host.needs(Gfn{5}));
  host.attach(b);
  EXPECT_TRUE(host.needs(Gfn{5}));
}

TEST_F(HostTest, AVcpuWaitingForAPageItsGuestThenClaimedIsWoken) {
  host.attach(a);
  a.touch(5);
  poll();
  a.claim(5);
  page_comes(5);
  EXPECT_FALSE(a.anybody_waits());
}

TEST_F(HostTest, ZerosAreInstalledInEveryGuest) {
  host.attach(a);
  host.attach(b);
  a.touch(5);
  poll();
  zeros_come({Gfn{0}, 64});
  EXPECT_TRUE(a.has(0) && a.has(63) && b.has(5));
  EXPECT_FALSE(a.anybody_waits());
  EXPECT_THAT(demands(), IsEmpty());
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

// --- guests that go, servers that die ------------------------------------------------------------

TEST_F(HostTest, AGoneGuestsDemandsAreForgottenUnlessAnotherWaitsForThem) {
  host.attach(a);
  host.attach(b);
  for (std::uint64_t gfn = 0; gfn < 200; ++gfn) b.install(Gfn{gfn}, test::page_bytes(gfn));
  for (std::uint64_t gfn = 0; gfn < 200; ++gfn) a.touch(gfn);
  a.touch(500);
  b.touch(500);
  while (poll() != 0) {
  }
  EXPECT_EQ(demands().size(), 201U);
  host.detach(a);
  EXPECT_THAT(demands(), ElementsAre(500));
  host.detach(b);
  EXPECT_EQ(client.engine.nb_in_flight(), 0U);
}

TEST_F(HostTest, ADeadServerFailsTheDemandsAndTheGuestsGetAnError) {
  host.attach(a);
  for (std::uint64_t gfn = 0; gfn < 100; ++gfn) a.touch(gfn);
  while (poll() != 0) {
  }
  host.fail_unanswered();
  EXPECT_THAT(a.failed, IsEmpty());  // it is not dead yet
  server_dies();
  while (!demands().empty()) host.fail_unanswered();
  EXPECT_EQ(a.failed.size(), 100U);
  EXPECT_FALSE(a.anybody_waits());
  EXPECT_EQ(stats.failed_pages.read(), 100U);
}

TEST_F(HostTest, OnlyGuestsThatWaitForAFailedPageAreTold) {
  host.attach(a);
  host.attach(b);
  a.touch(5);
  poll();
  server_dies();
  host.fail_unanswered();
  EXPECT_THAT(a.failed, ElementsAre(5));
  EXPECT_THAT(b.failed, IsEmpty());
  page_comes(5);  // the server is back
  host.flush(client.now);
  expect_page(b, 5);
}

TEST_F(HostTest, AFailureThatWasPutOffIsTriedAgain) {
  host.attach(a);
  a.touch(5);
  poll();
  a.fail_verdict = FailMeans::kAgain;
  server_dies();
  host.fail_unanswered();
  EXPECT_THAT(demands(), ElementsAre(5));
  a.fail_verdict = FailMeans::kPoisoned;
  host.fail_unanswered();
  EXPECT_THAT(a.failed, ElementsAre(5));
}

TEST_F(HostTest, AVcpuWaitingForAPageItsGuestThenClaimedIsWokenByFailureToo) {
  host.attach(a);
  a.touch(5);
  poll();
  a.claim(5);
  server_dies();
  host.fail_unanswered();
  EXPECT_FALSE(a.anybody_waits());
  EXPECT_THAT(a.failed, IsEmpty());
}

TEST_F(HostTest, AnAbsentPageFailsItsGuests) {
  host.attach(a);
  a.touch(5);
  poll();
  const PageRange range{Gfn{5}, 1};
  EXPECT_TRUE(client.engine.take_range(wire::FrameType::kAbsent, range, client.now));
  host.fail(range, client.now);
  EXPECT_THAT(a.failed, ElementsAre(5));
  EXPECT_THAT(demands(), IsEmpty());
}

TEST_F(HostTest, AnAbsentRangeThatReachesBeyondTheImageIsCutAtItsEnd) {
  host.attach(a);
  a.touch(kPages - 1);
  poll();
  const PageRange range{Gfn{kPages - 1}, wire::kMaxRangePages};
  EXPECT_TRUE(client.engine.take_range(wire::FrameType::kAbsent, range, client.now));
  host.fail(range, client.now);
  EXPECT_THAT(a.failed, ElementsAre(kPages - 1));
}

TEST(HostRecord, HasNoMoreRangesThanItHasRoomForAndCountsTheseAlone) {
  test::TestClient client;
  client.join(3 * Host::kMaxRecorded);
  HostStats stats;
  Host host{client.engine, stats, 0, 4};
  std::vector<PageRange> list;
  for (std::uint64_t i = 0; i < Host::kMaxRecorded + 10; ++i) list.push_back({Gfn{2 * i}, 1});
  host.load(list, client.now);
  EXPECT_THAT(host.recorded(), SizeIs(Host::kMaxRecorded));
  EXPECT_EQ(stats.recorded_pages.read(), Host::kMaxRecorded);
}

// --- completion --------------------------------------------------------------------------------

TEST_F(HostTest, AGuestThatIsCompletedGetsWhatItLacksAndNoMore) {
  host.attach(a);
  host.attach(b);
  zeros_come({Gfn{0}, kPages - 3});
  b.claim(kPages - 1);
  host.complete(b);
  poll();
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(1));
  EXPECT_EQ(wants[0].first.host(), kPages - 3);
  EXPECT_EQ(wants[0].nb_pages.host(), 2U);
  for (const std::uint64_t gfn : {kPages - 3, kPages - 2}) {
    EXPECT_TRUE(host.completing(b));
    page_comes(gfn);
    host.flush(client.now);
    poll();
  }
  EXPECT_FALSE(host.completing(b));
  expect_page(b, kPages - 2);
}

TEST_F(HostTest, AnInstallThatIsPutOffDoesNotCountAsComplete) {
  host.attach(a);
  zeros_come({Gfn{0}, kPages - 1});
  host.complete(a);
  poll();
  client.send_wants();
  a.verdicts = {Install::kAgain};
  page_comes(kPages - 1);
  host.flush(client.now);
  EXPECT_FALSE(a.has(kPages - 1));
  poll();
  poll();
  EXPECT_TRUE(host.completing(a));
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  page_comes(kPages - 1);
  host.flush(client.now);
  poll();
  EXPECT_FALSE(host.completing(a));
}

TEST_F(HostTest, CompletingOneGuestLeavesMostOfTheRequestsToFaults) {
  host.attach(a);
  host.complete(a);
  poll();
  EXPECT_LE(client.engine.nb_in_flight(), 512U);
  a.touch(kPages - 1);
  poll();
  EXPECT_THAT(demands(), ElementsAre(kPages - 1));
}

TEST_F(HostTest, AGuestThatLeavesIsNotCompleted) {
  host.attach(a);
  host.complete(a);
  host.detach(a);
  poll();
  EXPECT_FALSE(host.completing(a));
  EXPECT_THAT(client.send_wants(), IsEmpty());
}

}  // namespace
}  // namespace snowfabric
