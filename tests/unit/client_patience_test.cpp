// SPDX-License-Identifier: BSD-3-Clause
// What the client does when no answer comes: restarted, silent and dead servers.
#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <string_view>

#include <gmock/gmock.h>

#include "fabric/client_engine.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::Parsed;
using test::TestClient;
using testing::IsEmpty;
using testing::SizeIs;
using wire::FrameType;

// --- servers that restart or die ---------------------------------------------------------------

TEST(ClientPatience, ANewIncarnationIsAskedForEverythingAgainAndIsNotLoss) {
  TestClient client;
  client.join();
  client.page(0);
  client.demand(5);
  client.demand(6);
  client.send();
  client.server.incarnation = 2;  // the server restarts: a new sequence
  client.seq = 500'000;
  EXPECT_TRUE(client.page(1));
  const auto hello = client.send();
  ASSERT_THAT(hello, SizeIs(1));
  EXPECT_EQ(hello[0].frame.type, FrameType::kHello);
  client.welcome();
  EXPECT_TRUE(client.page(2));
  EXPECT_EQ(client.stats.rx_lost.read(), 0U);
  std::vector<wire::WantEntry> wants;
  for (const Nanos until = client.now + 3ms; client.now < until; client.now += 256us)
    for (const auto& want : client.send_wants()) wants.push_back(want);
  std::uint64_t nb_pages = 0;
  for (const auto& want : wants) {
    nb_pages += want.nb_pages.host();
    EXPECT_EQ(want.flags, 0);  // it has not been asked before
  }
  EXPECT_EQ(nb_pages, 2U);
  EXPECT_EQ(client.stats.server_restarts.read(), 1U);
}

/// Of a client that knows an address of its server.
ClientConfig with_server(std::uint64_t seed = 1) {
  ClientConfig config = TestClient::defaults();
  config.server = MacAddr{{2, 0, 0, 0, 0, 9}};
  config.seed = seed;
  return config;
}

/// Whom the HELLOs of two seconds go to: '1' that server, 'A' all.
std::string greeted_by(const ClientConfig& config) {
  TestClient client{config};
  std::string to;
  for (; client.now < 2s; client.now += 5ms)
    for (const Parsed& sent : client.send()) {
      wire::EthHdr eth;
      std::memcpy(&eth, sent.bytes.data(), sizeof eth);
      to += eth.dst == kBroadcast ? 'A' : eth.dst == *config.server ? '1' : '?';
    }
  return to;
}

TEST(ClientPatience, AServerThatDoesNotAnswerIsGreetedByBroadcastNowAndThen) {
  const std::string to = greeted_by(with_server());
  ASSERT_GE(to.size(), 16U);
  EXPECT_EQ(to[0], '1');
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(to[i], to[i + 8]);
  EXPECT_EQ(std::ranges::count(std::string_view{to}.substr(0, 8), 'A'), 1);
}

TEST(ClientPatience, ClientsDoNotAllGreetByBroadcastAtOnce) {
  std::set<std::size_t> firsts;
  for (std::uint64_t seed = 1; seed <= 8; ++seed)
    firsts.insert(greeted_by(with_server(seed)).find('A'));
  EXPECT_GE(firsts.size(), 4U);
}

TEST(ClientPatience, AServerThatComesBackAtAnotherAddressIsJoinedThere) {
  TestClient client{with_server()};
  client.send();
  EXPECT_EQ(client.welcome(), wire::Drop::kNone);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_EQ(client.engine.server(), test::kServerMac);
}

TEST(ClientPatience, AServerSilentForTheConfiguredTimeIsDeadAndAliveAgainWithItsNextFrame) {
  ClientConfig config = TestClient::defaults();
  config.give_up = 2s;
  TestClient client{config};
  client.join();
  client.now = 10s;  // nothing was asked: silence means nothing
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  client.demand(5);
  unsigned nb_hellos = 0;
  for (; client.now < 12s; client.now += 5ms)
    for (const Parsed& sent : client.send()) nb_hellos += sent.frame.type == FrameType::kHello;
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_GE(nb_hellos, 10U);  // after half a second of silence
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_EQ(client.stats.server_dead.read(), 1U);
  client.page(7);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
}

TEST(ClientPatience, ASilentServerIsMissedWhenSomebodyWaitsForPrefetchedPages) {
  ClientConfig config = TestClient::defaults();
  config.give_up = 2s;
  TestClient client{config};
  client.join();
  client.now = 10s;
  client.prefetch(5);
  client.send();
  client.now = 20s;  // nobody waits
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  client.engine.await_prefetch(true, client.now);
  client.send_until(21s);
  client.engine.await_prefetch(true, client.now);
  client.demand(6);  // the time goes on
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_LE(client.engine.deadline(client.now), 22s);
  client.send_until(22100ms);
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
}

TEST(ClientPatience, AServerThatHasNothingToSendIsNotMissedWhereItAnswers) {
  TestClient client;
  client.join();
  client.engine.await_prefetch(true, client.now);
  for (; client.now < 20s; client.now += 100ms)
    for (const Parsed& sent : client.send())
      if (sent.frame.type == FrameType::kHello) client.welcome();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  client.engine.await_prefetch(false, client.now);
  client.now += 20s;
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
}

TEST(ClientPatience, AByeMakesItAskForTheServerAtOnce) {
  TestClient client;
  client.join();
  EXPECT_THAT(client.send(), IsEmpty());
  client.give(test::made_by([&](auto out) {
    return wire::write_bye(out, client.server, {}, test::kServerMac, 0, wire::kFlagSequenced, 0);
  }));
  const auto sent = client.send();
  ASSERT_THAT(sent, SizeIs(1));
  EXPECT_EQ(sent[0].frame.type, FrameType::kHello);
}

/// The server's BYE that names a client.
Parsed refusal(const TestClient& client, std::uint64_t client_id) {
  return test::made_by([&](auto out) {
    return wire::write_bye(out, client.server, {}, test::kServerMac, client_id, 0, 0);
  });
}

TEST(ClientPatience, ARefusedClientKnowsItAndGoesOnAskingUntilItIsWelcome) {
  TestClient client;
  client.send();
  EXPECT_EQ(client.give(refusal(client, test::kMe)), wire::Drop::kNone);
  EXPECT_EQ(client.give(refusal(client, 99)), wire::Drop::kUnexpectedType);  // not to us
  EXPECT_TRUE(client.engine.refused());
  EXPECT_EQ(client.stats.refusals.read(), 1U);
  client.now += 200ms;
  EXPECT_EQ(client.send().at(0).frame.type, FrameType::kHello);
  client.welcome();
  EXPECT_FALSE(client.engine.refused());
}

TEST(ClientPatience, ARefusalIsNoSignOfLife) {
  TestClient client;
  for (; client.now <= 11s; client.now += 100ms) {
    client.give(refusal(client, test::kMe));
    client.send();
  }
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_TRUE(client.engine.refused());
}

std::vector<std::uint64_t> unanswered(const TestClient& client) {
  std::vector<std::uint64_t> pages;
  client.engine.for_each_unanswered([&](Gfn page) { pages.push_back(page.value); });
  return pages;
}

TEST(ClientPatience, AServerThatLivesButNeverDeliversAPageFailsThatPageAlone) {
  ClientConfig config = TestClient::defaults();
  config.give_up = 1s;
  config.page_give_up = 3s;
  TestClient client{config};
  client.join();
  client.demand(5);
  const auto live_until = [&](Nanos end) {
    for (; client.now < end; client.now += 10ms) {
      client.send();
      client.page_of(5, test::page_bytes(6), 0, 1);  // its checksum never fits
      client.page(7);
    }
  };
  live_until(2900ms);
  client.demand(6);
  client.prefetch(8);
  EXPECT_THAT(unanswered(client), IsEmpty());
  live_until(5s);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_THAT(unanswered(client), testing::ElementsAre(5));
  EXPECT_EQ(client.stats.overdue_pages.read(), 1U);
  client.engine.forget(Gfn{5});
  EXPECT_THAT(unanswered(client), IsEmpty());
}

TEST(ClientPatience, ADemandThatNeverLeftThePortIsOverdueToo) {
  ClientConfig config = TestClient::defaults();
  config.page_give_up = 3s;
  TestClient client{config};
  client.join();
  client.demand(5);
  for (; client.now < 4s; client.now += 100ms) {
    client.engine.expire(client.now);  // the port takes nothing: next() is not called
    client.page(7);
  }
  EXPECT_THAT(unanswered(client), testing::ElementsAre(5));
}

TEST(ClientPatience, AServerFoundDeadSoonerThanItIsMissedIsAskedForAllTheSame) {
  ClientConfig config = TestClient::defaults();
  config.give_up = 300ms;  // below `silence`
  TestClient client{config};
  client.join();
  client.demand(5);
  unsigned nb_hellos = 0;
  for (; client.now < 400ms; client.now += 10ms)
    for (const Parsed& sent : client.send()) nb_hellos += sent.frame.type == FrameType::kHello;
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_GE(nb_hellos, 1U);
}

TEST(ClientPatience, WithADeadServerEveryDemandIsUnanswered) {
  TestClient client;
  client.join();
  client.demand(5);
  client.prefetch(6);
  EXPECT_THAT(unanswered(client), IsEmpty());
  client.send_until(11s);
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_THAT(unanswered(client), testing::ElementsAre(5));
}

TEST(ClientPatience, TimeInWhichItStoodStillItselfGivesUpNothing) {
  TestClient client;
  client.join();
  client.demand(5);
  client.send_until(1s);  // asked for again and again already, with HELLOs
  client.now += 60s;      // as a machine that was suspended sees it
  const Nanos awake = client.now;
  client.send_until(awake + 8s);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_THAT(unanswered(client), IsEmpty());
  client.send_until(awake + 9s);
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_THAT(unanswered(client), testing::ElementsAre(5));
}

TEST(ClientPatience, AStandstillGivesUpNothingHoweverShortThePatience) {
  ClientConfig config = TestClient::defaults();
  config.give_up = 500ms;
  TestClient client{config};
  client.join();
  client.demand(5);
  client.send_until(100ms);
  client.now += 60s;
  client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_THAT(unanswered(client), IsEmpty());
}

TEST(ClientPatience, APageOfALiveServerIsAskedForAgainAfterAStandstill) {
  TestClient client;
  client.join();
  client.demand(5);
  client.send_until(1s);
  client.now += 60s;
  client.page(7);  // it lay in the port
  EXPECT_FALSE(client.send_wants().empty());
  EXPECT_THAT(unanswered(client), IsEmpty());
}

TEST(ClientPatience, AHostThatGetsItsTurnSeldomGivesUpLateButDoesSo) {
  TestClient client;
  client.join();
  client.demand(5);
  for (; client.now < 19s; client.now += 1s) client.send();  // half of it counts
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  for (; client.now < 22s; client.now += 1s) client.send();
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
}

}  // namespace
}  // namespace snowfabric
