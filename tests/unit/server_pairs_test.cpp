// SPDX-License-Identifier: BSD-3-Clause
// When the server puts two pages into one frame.
#include <utility>
#include <vector>

#include <gmock/gmock.h>

#include "fabric/server_engine.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::Pair;
using wire::FrameType;
using wire::Priority;
using wire::test_frames::want;

constexpr std::uint64_t kNone = ~std::uint64_t{0};

/// Members 1 and 2, which take pairs.
struct Server : test::TestServer {
  explicit Server(const ServerConfig& config = test::unlimited(),
                  std::vector<std::uint64_t> zeros = {})
      : TestServer{100, config, std::move(zeros)} {
    flags = wire::kFlagPairs;
    for (const auto id : {1U, 2U}) hello(id);
    now += 20ms;
    drain();
  }
  /// All that it wants sent, frame by frame; kNone: there is no second page.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> drain_frames() {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> frames;
    for (const ServerTx& tx : drain())
      frames.emplace_back(tx.range.first.value, tx.second.value_or(Gfn{kNone}).value);
    return frames;
  }
};

TEST(ServerPairs, WantedPagesGoTwoAFrameInTheirOrderAndTheLastAlone) {
  Server server;
  server.request(1, {want(7, 1), want(3, 1), want(50, 3)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(7, 3), Pair(50, 51), Pair(52, kNone)));
  EXPECT_EQ(server.stats.tx_pairs.read(), 2U);
  EXPECT_EQ(server.stats.tx_pages_multicast.read(), 5U);
}

TEST(ServerPairs, ThePagesOfAFrameAreWrittenIntoItsHeader) {
  Server server;
  server.request(1, {want(7, 1), want(3, 1)});
  const ServerTx tx = server.only();
  test::Bytes frame(wire::kMaxFrameBytes);
  EXPECT_EQ(server.engine->write(tx, test::kServerMac, frame), wire::kPairHeaderBytes);
  test::Parsed parsed{frame};
  EXPECT_EQ(parsed.frame.page.gfn.host(), 7U);
  ASSERT_TRUE(parsed.frame.next_page());
  EXPECT_EQ(parsed.frame.page.gfn.host(), 3U);
}

TEST(ServerPairs, APageThatIsAloneDoesNotWaitForAnother) {
  Server server;
  server.request(1, {want(7, 1)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(7, kNone)));
}

TEST(ServerPairs, ZeroPagesGoByThemselves) {
  Server server{test::unlimited(), {0b1000}};
  server.request(1, {want(2, 1), want(3, 1), want(4, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(2, kNone), Pair(3, kNone), Pair(4, 5)));
}

TEST(ServerPairs, WhatSomebodyMissedGoesByItselfInCaseLongFramesDoNotGetThrough) {
  Server server;
  server.request(1, {want(3, 1)});
  server.drain();
  server.now += 20ms;
  server.request(1, {want(2, 1), want(3, 1, Priority::kDemand, wire::kWantRetry), want(4, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(2, kNone), Pair(3, kNone), Pair(4, 5)));
  server.now += 20ms;
  server.request(1, {want(3, 2)});  // the next time it may have company again
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(3, 4)));
}

TEST(ServerPairs, WhatIsAskedForAgainBeforeItWentOutWasNotMissed) {
  Server server;
  server.request(1, {want(2, 2)});
  server.request(1, {want(3, 1, Priority::kDemand, wire::kWantRetry)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(2, 3)));
}

TEST(ServerPairs, OneMemberThatDoesNotTakeThemKeepsAllFromThem) {
  Server server;
  server.flags = 0;
  server.hello(3);
  server.flags = wire::kFlagPairs;
  server.drain();
  server.request(1, {want(7, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(7, kNone), Pair(8, kNone)));
  server.bye(3);
  server.now += 20ms;
  server.drain();
  server.request(1, {want(9, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(9, 10)));
}

TEST(ServerPairs, AMemberThatTakesThemAfterAllIsBelieved) {
  Server server;
  server.flags = 0;
  server.request(1, {});
  server.flags = wire::kFlagPairs;
  server.request(1, {want(7, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(7, kNone), Pair(8, kNone)));
  server.now += 20ms;
  server.drain();
  server.request(1, {want(9, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(9, 10)));
}

TEST(ServerPairs, NoneGoOutWhereTheMtuIsTooSmall) {
  Server server{test::unlimited(wire::kPairMtuBytes - 1)};
  server.request(1, {want(7, 2)});
  EXPECT_THAT(server.drain_frames(), ElementsAre(Pair(7, kNone), Pair(8, kNone)));
}

TEST(ServerPairs, InTheEndGamePagesForDifferentMembersGoEachInItsFrame) {
  ServerConfig config = test::unlimited();
  config.end_game = {.enter = 0.05, .leave = 0.01};
  Server server{config};
  server.request(1, {want(0, 8)});
  server.drain();
  server.now += 20ms;
  server.drain();
  server.request(1, {want(20, 1)});
  server.request(2, {want(21, 2)});
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 2U);
  EXPECT_EQ(sent[0].dst, test::mac_of(1));
  EXPECT_FALSE(sent[0].second);
  EXPECT_EQ(sent[1].dst, test::mac_of(2));
  EXPECT_EQ(sent[1].second, Gfn{22});
}

TEST(ServerPairs, TheBucketIsAskedForTheWholeFrame) {
  ServerConfig config = test::unlimited();
  config.burst_bytes = 4 * wire::kMaxFrameBytes;
  Server server{config};
  server.request(1, {want(0, 50)});
  EXPECT_EQ(server.drain_frames().size(), 4U);
}

TEST(ServerPairs, PushedPagesGoTwoAFrameToo) {
  ServerConfig config = test::unlimited();
  config.push = true;
  test::TestServer server{4, config};
  server.drain();
  server.flags = wire::kFlagPairs;
  server.hello(1);
  server.now += 20ms;
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 3U);
  EXPECT_EQ(sent[0].type, FrameType::kWelcome);
  EXPECT_EQ(sent[1].second, Gfn{1});
  EXPECT_EQ(sent[2].second, Gfn{3});
}

TEST(ServerPairs, PagesThatAPushRateHoldsBackStillGoTwoAFrame) {
  ServerConfig config = test::unlimited();
  config.push = true;
  config.push_bytes_per_s = 4e6;
  config.burst_bytes = 4000;
  test::TestServer server{8, config};
  server.drain();
  server.flags = wire::kFlagPairs;
  server.hello(1);
  server.now += 20ms;
  EXPECT_EQ(server.drain().size(), 2U);  // WELCOME and a pair
  server.now += 1ms;
  EXPECT_THAT(server.drain(), testing::IsEmpty());
  server.now += 1500us;
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 1U);
  EXPECT_EQ(sent[0].range.first, Gfn{2});
  EXPECT_EQ(sent[0].second, Gfn{3});
}

}  // namespace
}  // namespace snowfabric
