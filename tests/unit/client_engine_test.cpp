// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/client_engine.hpp"

#include <gmock/gmock.h>

#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::Parsed;
using test::TestClient;
using testing::IsEmpty;
using testing::SizeIs;
using wire::Drop;
using wire::FrameType;

// --- join --------------------------------------------------------------------------------------

TEST(ClientEngine, HelloIsRepeatedWithJitterUntilAWelcomeComes) {
  TestClient client;
  std::vector<Nanos> times;
  for (; client.now < 2s; client.now += 1ms)
    for (const Parsed& sent : client.send()) {
      EXPECT_EQ(sent.frame.type, FrameType::kHello);
      times.push_back(client.now);
    }
  ASSERT_GE(times.size(), 10U);
  std::vector<Nanos> gaps;
  for (std::size_t i = 1; i < times.size(); ++i) gaps.push_back(times[i] - times[i - 1]);
  EXPECT_GE(*std::ranges::min_element(gaps), 100ms);
  EXPECT_LE(*std::ranges::max_element(gaps), 126ms);
  EXPECT_NE(*std::ranges::min_element(gaps), *std::ranges::max_element(gaps));
  EXPECT_EQ(client.welcome(), Drop::kNone);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  for (; client.now < 4s; client.now += 10ms)
    for (const Parsed& sent : client.send()) EXPECT_EQ(sent.frame.type, FrameType::kRequest);
}

TEST(ClientEngine, AWelcomeForAnotherClientIsIgnored) {
  TestClient client;
  EXPECT_EQ(client.welcome(1024, 77), Drop::kUnexpectedType);
  EXPECT_EQ(client.engine.state(), ClientState::kJoining);
  EXPECT_EQ(client.engine.nb_pages(), 0U);
}

TEST(ClientEngine, AnotherGeometryOfTheSameImageIsRefused) {
  TestClient client;
  client.join(1024);
  EXPECT_EQ(client.welcome(2048), Drop::kBadField);
  EXPECT_EQ(client.engine.nb_pages(), 1024U);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
}

TEST(ClientEngine, PagesThatComeBeforeTheGeometryAreRefused) {
  TestClient client;
  client.send();
  EXPECT_FALSE(client.page(5));
  EXPECT_EQ(client.drop, Drop::kUnexpectedType);
}

TEST(ClientEngine, AServerWhoseFramesDoNotFitOurPortIsAskedForNothing) {
  ClientConfig config = TestClient::defaults();
  config.mtu_bytes = 1500;
  TestClient client{config};
  client.send();
  client.welcome(1024, test::kMe, 9000);
  EXPECT_EQ(client.engine.state(), ClientState::kMtuTooSmall);
  client.now += 10s;
  EXPECT_THAT(client.send(), IsEmpty());
}

TEST(ClientEngine, AnImageLargerThanExpectedIsRefusedBeforeItCostsMemory) {
  ClientConfig config = TestClient::defaults();
  config.max_pages = 1024;
  TestClient client{config};
  client.send();
  EXPECT_EQ(client.welcome(1025), Drop::kBadField);
  EXPECT_EQ(client.engine.nb_pages(), 0U);
  EXPECT_EQ(client.welcome(1024), Drop::kNone);
}

TEST(ClientEngine, AServerThatComesBackWithALargerMtuDoesNotCostTheGuests) {
  ClientConfig config = TestClient::defaults();
  config.mtu_bytes = 1500;
  TestClient client{config};
  client.join(1024, 1500);
  EXPECT_EQ(client.welcome(1024, test::kMe, 9000), Drop::kBadField);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_EQ(client.engine.server_mtu_bytes(), 1500);
}

// --- requests ----------------------------------------------------------------------------------

TEST(ClientEngine, NeighboursAreAskedForAsOneRange) {
  TestClient client;
  client.join();
  for (const std::uint64_t gfn : {10U, 11U, 12U, 20U}) client.demand(gfn);
  client.prefetch(21);  // of another priority: not the same range
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(3));
  EXPECT_EQ(wants[0].first.host(), 10U);
  EXPECT_EQ(wants[0].nb_pages.host(), 3U);
  EXPECT_EQ(wants[1].first.host(), 20U);
  EXPECT_EQ(wants[1].nb_pages.host(), 1U);
  EXPECT_EQ(wants[2].priority, static_cast<std::uint8_t>(wire::Priority::kPrefetch));
}

TEST(ClientEngine, ARangeNeverHasMorePagesThanTheFormatAllows) {
  TestClient client;
  client.join();
  for (std::uint64_t gfn = 0; gfn < 600; ++gfn) client.demand(gfn);
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(3));
  EXPECT_EQ(wants[0].nb_pages.host(), wire::kMaxWantPages);
  EXPECT_EQ(wants[2].nb_pages.host(), 600 - 2 * wire::kMaxWantPages);
}

TEST(ClientEngine, ARequestHoldsAtMostSoManyRangesAndTheRestFollowsInTheNext) {
  TestClient client;
  client.join();
  for (std::uint64_t gfn = 0; gfn < 200; gfn += 2) client.demand(gfn);  // 100 ranges
  const auto sent = client.send();
  ASSERT_THAT(sent, SizeIs(2));
  EXPECT_EQ(sent[0].frame.nb_wants(), wire::kMaxWants);
  EXPECT_EQ(sent[1].frame.nb_wants(), 100 - wire::kMaxWants);
}

TEST(ClientEngine, ARequestFitsTheSmallerMtuOfBothPorts) {
  ClientConfig config = TestClient::defaults();
  config.mtu_bytes = 600;
  TestClient client{config};
  client.join(1024, 576);
  for (std::uint64_t gfn = 0; gfn < 200; gfn += 2) client.demand(gfn);
  std::size_t nb_wants = 0;
  for (const Parsed& sent : client.send()) {
    EXPECT_LE(sent.bytes.size(), sizeof(wire::EthHdr) + 576);
    nb_wants += sent.frame.nb_wants();
  }
  EXPECT_EQ(nb_wants, 100U);
}

TEST(ClientEngine, APageInFlightIsNotAskedForTwice) {
  TestClient client;
  client.join();
  client.demand(5);
  client.demand(5);
  client.prefetch(5);
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  client.demand(5);
  EXPECT_THAT(client.send_wants(), IsEmpty());
  EXPECT_EQ(client.stats.asked_demand.read(), 1U);
}

TEST(ClientEngine, ADemandRaisesAPrefetchInFlightAndTellsTheServer) {
  TestClient client;
  client.join();
  client.prefetch(5);
  client.send_wants();
  client.demand(5);
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(1));
  EXPECT_EQ(wants[0].priority, static_cast<std::uint8_t>(wire::Priority::kDemand));
  EXPECT_TRUE(client.page(5)->demanded);
}

TEST(ClientEngine, ADemandDisplacesAPrefetchWhenTheTableIsFullAndAPrefetchNothing) {
  ClientConfig config = TestClient::defaults();
  config.max_inflight = 2;
  TestClient client{config};
  client.join();
  EXPECT_TRUE(client.demand(1));
  EXPECT_TRUE(client.prefetch(2));
  EXPECT_FALSE(client.prefetch(3));
  EXPECT_TRUE(client.demand(4));
  EXPECT_FALSE(client.engine.in_flight(Gfn{2}));
  EXPECT_FALSE(client.demand(5));  // demands do not displace each other
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(2));
  EXPECT_EQ(wants[1].first.host(), 4U);
}

TEST(ClientEngine, ADemandIsAskedForThoughTheSendQueueWasFullOfForgottenOnes) {
  ClientConfig config = TestClient::defaults();
  config.max_inflight = 4;
  TestClient client{config};
  client.join();
  for (std::uint64_t gfn = 0; gfn < 8; ++gfn) {  // the port takes nothing meanwhile
    client.demand(gfn);
    client.engine.forget(Gfn{gfn});
  }
  EXPECT_TRUE(client.demand(100));
  std::size_t asked = client.send_wants().size();
  for (; client.now < 100ms; client.now += 1ms) asked += client.send_wants().size();
  EXPECT_GE(asked, 1U);
}

TEST(ClientEngine, AForgottenPageIsNeitherSentNorRetried) {
  TestClient client;
  client.join();
  client.demand(5);
  client.engine.forget(Gfn{5});
  EXPECT_THAT(client.send_wants(), IsEmpty());
  client.demand(6);
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  client.engine.forget(Gfn{6});
  client.now += 10s;
  EXPECT_THAT(client.send_wants(), IsEmpty());
  EXPECT_EQ(client.engine.nb_in_flight(), 0U);
}

// --- pages -------------------------------------------------------------------------------------

TEST(ClientEngine, FragmentsAreKeptAndOnlyTheMissingOnesAskedForAgain) {
  TestClient client;
  client.join(1024, 1500);
  client.demand(5);
  client.send();
  EXPECT_FALSE(client.page(5, 0, 3));
  EXPECT_FALSE(client.page(5, 2, 3));
  client.now += 30ms;
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(1));
  EXPECT_EQ(wants[0].fragments, 0b010);
  const auto arrival = client.page(5, 1, 3);
  ASSERT_TRUE(arrival);
  EXPECT_TRUE(std::ranges::equal(arrival->bytes, test::page_bytes(5)));
}

TEST(ClientEngine, SaysThatItTakesTwoPagesAFrameIfItsPortDoes) {
  for (const auto mtu_bytes : {std::uint16_t{8251}, std::uint16_t{8252}}) {
    ClientConfig config = TestClient::defaults();
    config.mtu_bytes = mtu_bytes;
    TestClient client{config};
    const int flags = mtu_bytes == 8252 ? wire::kFlagPairs : 0;
    const auto hello = client.send();
    ASSERT_THAT(hello, SizeIs(1));
    EXPECT_EQ(hello[0].frame.flags, flags);
    client.welcome();
    const auto request = client.send();
    ASSERT_THAT(request, SizeIs(1));
    EXPECT_EQ(request[0].frame.flags, flags);
  }
}

TEST(ClientEngine, APairWithAPageOutsideTheImageIsRefused) {
  TestClient client;
  client.join(100);
  const auto pair = [&](std::uint64_t second) {
    return client.give(test::made_by([&](auto out) {
      return wire::write_pair_header(out, client.server, group_address(test::kImageId),
                                     test::kServerMac, {Gfn{99}, 0}, {Gfn{second}, 0}, 0, 0) +
             2 * kPageSize;
    }));
  };
  EXPECT_EQ(pair(0), Drop::kNone);
  EXPECT_EQ(pair(100), Drop::kOutOfRange);
}

TEST(ClientEngine, APageThatFailsItsChecksumIsRefusedAndAskedForWholeAgain) {
  TestClient client;
  client.join(1024, 1500);
  client.demand(5);
  client.send();
  const test::Bytes wrong = test::page_bytes(6);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_FALSE(client.page_of(5, wrong, i, 3));
  EXPECT_EQ(client.drop, Drop::kBadCrc);
  EXPECT_TRUE(client.engine.in_flight(Gfn{5}));
  client.now += 30ms;
  const auto wants = client.send_wants();
  ASSERT_THAT(wants, SizeIs(1));
  EXPECT_EQ(wants[0].fragments, 0);
}

/// The tree of an image of page_bytes() and, behind them, four zero pages.
HashTree tree_of_pages(std::uint64_t nb_pages) {
  std::vector<Hash> hashes;
  for (std::uint64_t gfn = 0; gfn < nb_pages; ++gfn) {
    const test::Bytes bytes = test::page_bytes(gfn);
    hashes.push_back(hash_page(std::span<const std::byte, kPageSize>{bytes}, 0));
  }
  hashes.insert(hashes.end(), 4, hash_page(std::array<std::byte, kPageSize>{}, 0));
  return HashTree::over(hashes);
}

TEST(ClientEngine, APageThatDoesNotFitTheHashTreeIsRefusedAndAskedForAgain) {
  const HashTree tree = tree_of_pages(11);  // of page 11 it says that it is zero
  ClientConfig config = TestClient::defaults();
  config.tree = &tree;
  TestClient client{config};
  client.join(15);
  client.demand(10);
  client.demand(11);
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  EXPECT_FALSE(client.page(11));  // its checksum is right
  EXPECT_EQ(client.drop, Drop::kBadHash);
  EXPECT_TRUE(client.engine.demanded(Gfn{11}));
  EXPECT_TRUE(client.page(10));
  client.now += 1s;
  const auto again = client.send_wants();
  ASSERT_THAT(again, SizeIs(1));
  EXPECT_EQ(again[0].first.host(), 11U);
}

TEST(ClientEngine, OfZerosAndAbsentPagesOnlyThoseAreBelievedThatFitTheHashTree) {
  const HashTree tree = tree_of_pages(11);
  ClientConfig config = TestClient::defaults();
  config.tree = &tree;
  TestClient client{config};
  client.join(15);
  EXPECT_EQ(client.engine.nb_believed(FrameType::kZeros, {Gfn{11}, 4}), 4U);
  EXPECT_EQ(client.engine.nb_believed(FrameType::kZeros, {Gfn{10}, 4}), 0U);
  EXPECT_EQ(client.engine.nb_believed(FrameType::kAbsent, {Gfn{11}, 1}), 0U);
  EXPECT_EQ(client.engine.nb_believed(FrameType::kAbsent, {Gfn{15}, 3}), 3U);
}

TEST(ClientEngine, AServerWhoseImageIsNotTheHashTreesIsNotJoined) {
  const HashTree tree = tree_of_pages(11);
  ClientConfig config = TestClient::defaults();
  config.tree = &tree;
  TestClient client{config};
  client.send();
  EXPECT_EQ(client.welcome(129), Drop::kBadHash);
  EXPECT_EQ(client.engine.state(), ClientState::kJoining);
}

TEST(ClientEngine, PagesAndZerosOutsideTheImageAreRefused) {
  TestClient client;
  client.join(100);
  EXPECT_FALSE(client.page(100));
  EXPECT_EQ(client.drop, Drop::kOutOfRange);
  const auto zeros = [&](PageRange range) {
    return client.give(test::made_by([&](auto out) {
      return wire::write_ranges(out, FrameType::kZeros, client.server, {}, test::kServerMac,
                                {&range, 1}, wire::kFlagSequenced, client.seq++);
    }));
  };
  EXPECT_EQ(zeros({Gfn{90}, 11}), Drop::kOutOfRange);
  EXPECT_EQ(zeros({Gfn{90}, 10}), Drop::kNone);
}

TEST(ClientEngine, AZeroRunEndsEveryFlightInItAndSaysWhetherOneWasDemanded) {
  TestClient client;
  client.join();
  client.prefetch(10);
  EXPECT_FALSE(client.engine.take_range(FrameType::kZeros, {Gfn{0}, 64}, client.now));
  client.demand(20);
  client.prefetch(21);
  EXPECT_TRUE(client.engine.take_range(FrameType::kZeros, {Gfn{0}, 64}, client.now));
  EXPECT_EQ(client.engine.nb_in_flight(), 0U);
}

}  // namespace
}  // namespace snowfabric
