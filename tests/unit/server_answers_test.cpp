// SPDX-License-Identifier: BSD-3-Clause
// What the server decides about one page: lockstep, fragments, end game.
#include <gmock/gmock.h>

#include "fabric/server_engine.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::report;
using testing::ElementsAre;
using testing::IsEmpty;
using wire::Priority;
using wire::test_frames::want;
using Joined = test::JoinedServer;

// --- lockstep ----------------------------------------------------------------------------------

TEST(ServerAnswers, ManyAskersOfOnePageWithinTheWindowGetOneMulticast) {
  Joined server{100};
  server.request(1, {want(5, 1)});
  server.request(2, {want(5, 1)});  // merged with the queued page
  EXPECT_THAT(server.drain_pages(), ElementsAre(5));
  server.now += 500us;
  server.request(3, {want(5, 1)});  // its answer is on the wire
  EXPECT_THAT(server.drain(), IsEmpty());
  EXPECT_EQ(server.stats.wants_merged.read(), 1U);
  EXPECT_EQ(server.stats.lockstep_hits.read(), 1U);
  server.now += 1ms;  // the window has passed
  server.request(3, {want(5, 1)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(5));
}

TEST(ServerAnswers, WhoJoinedAfterTheMulticastIsAnsweredWithinTheWindow) {
  Joined server{100};
  server.request(1, {want(5, 1)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(5));
  server.now += 100us;
  server.hello(9);
  server.drain();
  server.request(9, {want(5, 1)});  // which it has not seen
  EXPECT_THAT(server.drain_pages(), ElementsAre(5));
  EXPECT_EQ(server.stats.lockstep_hits.read(), 0U);
}

TEST(ServerAnswers, ARetryPassesTheWindowButNotTheGuard) {
  Joined server{100};
  server.settle_window();
  server.request(1, {want(5, 1)});
  server.drain();
  server.now += Joined::kGuard - 5us;  // a page's times are right to 4 us
  server.request(2, {want(5, 1, Priority::kDemand, wire::kWantRetry)});
  EXPECT_THAT(server.drain(), IsEmpty());  // so young that nobody can have missed it
  server.now += 5us;
  server.request(2, {want(5, 1)});
  EXPECT_THAT(server.drain(), IsEmpty());  // not a retry: the window holds
  server.request(2, {want(5, 1, Priority::kDemand, wire::kWantRetry)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(5));
}

TEST(ServerAnswers, TheWindowFollowsTheMeasuredTimesWithinItsBounds) {
  Joined server{100};
  server.settle_window();
  EXPECT_EQ(server.stats.window_us.read(), 3000U);
  for (std::uint64_t id = 1; id <= 3; ++id)
    server.request(id, {}, report(100'000, 0, 0, 4'000'000'000U, ~0U));
  server.now += 20ms;
  server.drain();
  EXPECT_EQ(server.stats.window_us.read(), 20'000U);
}

// --- fragments ---------------------------------------------------------------------------------

TEST(ServerAnswers, OnlyTheFragmentsNamedAreSent) {
  Joined server{100, test::unlimited(1500)};
  server.request(1, {want(5, 1, Priority::kDemand, 0, 0b101)});
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 2U);
  EXPECT_EQ(sent[0].fragment, 0);
  EXPECT_EQ(sent[1].fragment, 2);
  EXPECT_EQ(server.stats.tx_pages_partial.read(), 1U);
}

TEST(ServerAnswers, TheFragmentsTwoClientsMissGoOutTogether) {
  Joined server{100, test::unlimited(1500)};
  server.request(1, {want(5, 1, Priority::kDemand, 0, 0b001)});
  server.request(2, {want(5, 1, Priority::kDemand, 0, 0b100)});
  EXPECT_EQ(server.drain().size(), 2U);
}

TEST(ServerAnswers, AMaskThatNamesNoExistingFragmentMeansTheWholePage) {
  Joined server{100, test::unlimited(1500)};
  server.request(1, {want(5, 1, Priority::kDemand, 0, 0b1111'1000), want(6, 1)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(5, 5, 5, 6, 6, 6));  // it once stalled here
}

TEST(ServerAnswers, TheGroupSequenceCountsMulticastFramesOnly) {
  ServerConfig config = test::unlimited(1500);
  config.end_game = {.enter = 0.5, .leave = 0.1};
  Joined server{4, config};
  std::uint32_t next_seq = 0;
  const auto check = [&](std::size_t nb_multicast) {
    for (const ServerTx& tx : server.drain()) {
      const bool sequenced = (tx.flags & wire::kFlagSequenced) != 0;
      EXPECT_EQ(sequenced, tx.dst.is_multicast());
      if (!sequenced) continue;
      EXPECT_EQ(tx.seq, next_seq++);
      --nb_multicast;
    }
    EXPECT_EQ(nb_multicast, 0U);
  };
  server.request(1, {want(0, 2)});
  check(6);
  server.now += 20ms;  // half of the image: the end game begins
  server.hello(2);
  server.request(1, {want(2, 1), want(100, 1)});  // unicast page, WELCOME and ABSENT between
  check(0);
  EXPECT_EQ(server.stats.tx_pages_unicast.read(), 1U);
  EXPECT_EQ(server.engine->bye().seq, next_seq);
}

// --- end game ----------------------------------------------------------------------------------

/// In the end game after pages 0 .. 7 of 10 went out.
struct EndGameServer : Joined {
  EndGameServer() : Joined{10, config()} {
    request(1, {want(0, 8)});
    drain();
    now += 20ms;
    drain();
    EXPECT_EQ(stats.end_game.read(), 1U);
  }
  static ServerConfig config() {
    ServerConfig made = test::unlimited();
    made.end_game = {.enter = 0.8, .leave = 0.4};
    return made;
  }
};

TEST(ServerAnswers, InTheEndGameAnAnswerGoesToTheAskerAlone) {
  EndGameServer server;
  server.request(2, {want(8, 1)});
  EXPECT_EQ(server.only().dst, test::mac_of(2));
}

TEST(ServerAnswers, AMemberIsWhereItLastSpokeFrom) {
  EndGameServer server;
  const test::Parsed forged = test::made_by([&](auto out) {
    return wire::write_hello(out, server.who, test::kServerMac, test::mac_of(9),
                             {.client_id = 2, .mtu_bytes = 9000, .reserved = {}}, 0);
  });
  ASSERT_EQ(server.give(9, forged), wire::Drop::kNone);
  server.drain();
  server.request(2, {want(8, 1)});
  EXPECT_EQ(server.only().dst, test::mac_of(2));
}

TEST(ServerAnswers, InTheEndGameASecondAskerTurnsItToMulticast) {
  EndGameServer server;
  server.request(2, {want(8, 1)});
  server.request(3, {want(8, 1)});  // both wait for the queued page
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));
  server.now += 20ms;
  server.request(2, {want(9, 1)});
  EXPECT_EQ(server.only().dst, test::mac_of(2));
  server.now += 20ms;
  server.request(3, {want(9, 1)});  // whenever it comes, there may be more
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));
  server.now += 20ms;
  server.request(1, {want(9, 1)});  // long after: alone again
  EXPECT_EQ(server.only().dst, test::mac_of(1));
}

TEST(ServerAnswers, InTheEndGameWhatSeveralMembersLackGoesToAll) {
  EndGameServer server;
  for (const auto id : {1U, 2U, 3U}) server.request(id, {}, report(1, 600, 400));
  server.now += 20ms;
  server.request(2, {want(8, 1)}, report(2, 600, 400));
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));  // of three members 1.2 lack it
}

TEST(ServerAnswers, InTheEndGameALateJoinerIsAnsweredAloneWhateverTheOthersLose) {
  EndGameServer server;
  for (const auto id : {1U, 2U, 3U}) server.request(id, {}, report(1, 600, 400));
  server.hello(4);
  server.now += 20ms;
  server.drain();
  server.request(4, {want(0, 1)});
  EXPECT_EQ(server.only().dst, test::mac_of(4));
  server.now += 20ms;
  server.request(1, {want(0, 1)}, report(2, 600, 400));  // this one has lost it
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));
}

TEST(ServerAnswers, InTheEndGameWhatASecondLateJoinerAsksForGoesToAll) {
  EndGameServer server;
  for (const auto id : {4U, 5U}) server.hello(id);
  server.drain();
  server.request(4, {want(0, 1)});
  EXPECT_EQ(server.only().dst, test::mac_of(4));
  server.now += 20ms;
  server.request(5, {want(0, 1)});  // there may be more of them
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));
}

TEST(ServerAnswers, APromotedPageThatWasAnsweredIsNotSharedWithALaterAsker) {
  EndGameServer server;
  for (const auto id : {4U, 5U}) server.hello(id);
  server.drain();
  server.request(4, {want(8, 1, Priority::kPrefetch), want(0, 1, Priority::kPrefetch)});
  server.request(5, {want(0, 1, Priority::kDemand)});
  ServerTx tx;
  ASSERT_TRUE(server.engine->next(tx, server.now));  // page 0, by its demand
  EXPECT_EQ(tx.range.first, Gfn{0});
  EXPECT_EQ(tx.dst, group_address(test::kImageId));  // two had asked
  server.now += 20ms;                                // its prefetch entry still stands in the queue
  server.request(4, {want(0, 1, Priority::kDemand)});
  ASSERT_TRUE(server.engine->next(tx, server.now));
  EXPECT_EQ(tx.range.first, Gfn{0});
  EXPECT_EQ(tx.dst, test::mac_of(4));
}

TEST(ServerAnswers, LateJoinersEndTheEndGameAndItsHysteresisKeepsOneFromDoingSo) {
  EndGameServer server;
  server.hello(4);  // three of four members have seen 80 %: 0.6 is above `leave`
  server.now += 20ms;
  server.drain();
  EXPECT_EQ(server.stats.end_game.read(), 1U);
  for (std::uint64_t id = 5; id <= 7; ++id) server.hello(id);
  server.now += 20ms;
  server.drain();
  EXPECT_EQ(server.stats.end_game.read(), 0U);
  server.request(1, {want(0, 1)});
  EXPECT_EQ(server.only().dst, group_address(test::kImageId));
}

}  // namespace
}  // namespace snowfabric
