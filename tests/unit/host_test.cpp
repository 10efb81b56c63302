// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/host.hpp"

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
using Calls = std::vector<FakeGuest::Call>;

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
  host.fail_unanswered();
  host.fail_unanswered();  // a burst each time
  EXPECT_THAT(demands(), IsEmpty());
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
