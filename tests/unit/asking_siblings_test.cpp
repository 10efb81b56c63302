// SPDX-License-Identifier: BSD-3-Clause
// What a client asks its siblings for while the server is silent.
#include <vector>

#include <gmock/gmock.h>

#include "fabric/client_engine.hpp"
#include "fabric/crc32c.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::Parsed;
using test::TestClient;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using wire::FrameType;

constexpr std::uint64_t kPages = 1024;
constexpr std::uint64_t kSibling = 99;

/// What a client asks its siblings for until a time, and what it asks its server for.
struct Asked {
  std::vector<std::uint64_t> siblings, server;
};
Asked asks_until(TestClient& client, Nanos until) {
  Asked asked;
  for (; client.now < until; client.now += 1ms)
    for (const Parsed& sent : client.send()) {
      if (sent.frame.type != FrameType::kRequest) continue;
      wire::EthHdr eth;
      std::memcpy(&eth, sent.bytes.data(), sizeof eth);
      const bool to_all = eth.dst == group_address(client.server.image_id);
      EXPECT_EQ(to_all, (sent.frame.flags & wire::kFlagSibling) != 0);
      for (std::size_t i = 0; i < sent.frame.nb_wants(); ++i)
        (to_all ? asked.siblings : asked.server).push_back(sent.frame.want(i).first.host());
    }
  return asked;
}

/// A page, by a sibling.
Parsed repair(const TestClient& client, std::uint64_t gfn) {
  return test::page_frame(client.server, test::mac_of(kSibling), gfn, {test::page_bytes(gfn)},
                          wire::kFlagSibling);
}

std::vector<std::uint64_t> unanswered(const TestClient& client) {
  std::vector<std::uint64_t> pages;
  client.engine.for_each_unanswered([&](Gfn page) { pages.push_back(page.value); });
  return pages;
}

TEST(AskingSiblings, BeginsAfterASecondOfSilenceAndEndsWithTheServersNextFrame) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  const Asked before = asks_until(client, 990ms);
  EXPECT_THAT(before.siblings, IsEmpty());
  EXPECT_FALSE(before.server.empty());
  const Asked then = asks_until(client, 1100ms);
  EXPECT_THAT(then.server, IsEmpty());
  ASSERT_FALSE(then.siblings.empty());
  EXPECT_EQ(then.siblings[0], 5U);
  EXPECT_TRUE(client.engine.asks_siblings());
  client.page(7);
  const Asked after = asks_until(client, 1200ms);
  EXPECT_THAT(after.siblings, IsEmpty());
  EXPECT_FALSE(after.server.empty());
}

TEST(AskingSiblings, TheirPagesAreTakenAndAreNoSignThatTheServerLives) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  client.demand(6);
  asks_until(client, 9900ms);
  const Parsed page = repair(client, 5);
  EXPECT_EQ(client.give(page), wire::Drop::kNone);
  EXPECT_TRUE(client.engine.take_page(page.frame, client.now, client.drop));
  EXPECT_EQ(client.stats.rx_repairs.read(), 1U);
  EXPECT_EQ(client.stats.rx_lost.read(), 0U);
  EXPECT_TRUE(client.engine.asks_siblings());
  asks_until(client, 10100ms);
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
  EXPECT_THAT(unanswered(client), ElementsAre(6));
  client.give(repair(client, 7));
  EXPECT_EQ(client.engine.state(), ClientState::kServerDead);
}

TEST(AskingSiblings, WithADeadServerADemandHasAsLongToBeAnswered) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  asks_until(client, 11s);
  ASSERT_EQ(client.engine.state(), ClientState::kServerDead);
  client.engine.forget(Gfn{5});
  client.demand(6);
  EXPECT_EQ(asks_until(client, 20900ms).siblings.at(0), 6U);
  EXPECT_THAT(unanswered(client), IsEmpty());
  asks_until(client, 22s);
  EXPECT_THAT(unanswered(client), ElementsAre(6));
}

TEST(AskingSiblings, AServerThatIsBackGetsTheTimeThatAnyHas) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  asks_until(client, 11s);
  EXPECT_THAT(unanswered(client), ElementsAre(5));
  client.page(7);
  EXPECT_THAT(unanswered(client), IsEmpty());
  client.demand(6);
  EXPECT_THAT(asks_until(client, 11050ms).server, testing::IsSupersetOf({5U, 6U}));
}

TEST(AskingSiblings, AServersWelcomeSparesWhatWasAboutToFail) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  asks_until(client, 11s);
  ASSERT_THAT(unanswered(client), ElementsAre(5));
  client.server.incarnation = 2;
  client.welcome(kPages);
  EXPECT_EQ(client.engine.state(), ClientState::kJoined);
  EXPECT_THAT(unanswered(client), IsEmpty());
  EXPECT_FALSE(client.engine.asks_siblings());
}

TEST(AskingSiblings, AServerOfAnotherLifeIsNotOursBeforeItsWelcome) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  asks_until(client, 1100ms);
  client.server.incarnation = 2;
  client.page(7);
  EXPECT_TRUE(client.engine.asks_siblings());
}

TEST(AskingSiblings, GoesWithHellosHoweverSoonItBegins) {
  ClientConfig config = TestClient::defaults();
  config.repair_after = 250ms;  // below `silence`
  TestClient client{config};
  client.join(kPages);
  client.demand(5);
  unsigned nb_hellos = 0;
  for (; client.now < 400ms; client.now += 1ms)
    for (const Parsed& sent : client.send()) nb_hellos += sent.frame.type == FrameType::kHello;
  EXPECT_GE(nb_hellos, 1U);
}

TEST(AskingSiblings, TheTimeOfTheirAnswersIsNotTheServers) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  asks_until(client, 1050ms);
  client.demand(6);
  client.send();
  client.now += 2ms;
  const Parsed page = repair(client, 6);
  client.give(page);
  EXPECT_TRUE(client.engine.take_page(page.frame, client.now, client.drop));
  EXPECT_EQ(client.stats.srtt_us.read(), 0U);
}

TEST(AskingSiblings, AByeOrWelcomeWithTheFlagIsNothing) {
  TestClient client;
  client.join(kPages);
  const Parsed bye = test::made_by([&](auto out) {
    return wire::write_bye(out, client.server, {}, test::mac_of(kSibling), 0, wire::kFlagSibling,
                           0);
  });
  EXPECT_EQ(client.give(bye), wire::Drop::kUnexpectedType);
  EXPECT_THAT(client.send(), IsEmpty());
}

TEST(AskingSiblings, OnlyRequestsOfOthersWithTheFlagAreLetPass) {
  TestClient client;
  client.join(kPages);
  const auto request = [&](std::uint64_t client_id, std::uint8_t flags) {
    return test::made_by([&](auto out) {
      return wire::write_request(out, client.server, group_address(client.server.image_id),
                                 test::mac_of(client_id),
                                 {.client_id = client_id, .report = test::report(0)}, {}, flags);
    });
  };
  EXPECT_EQ(client.give(request(kSibling, wire::kFlagSibling)), wire::Drop::kNone);
  EXPECT_EQ(client.give(request(kSibling, 0)), wire::Drop::kUnexpectedType);
  EXPECT_EQ(client.give(request(test::kMe, wire::kFlagSibling)), wire::Drop::kUnexpectedType);
}

TEST(AskingSiblings, ASiblingCannotSayWhatOnlyTheServerMay) {
  TestClient client;
  client.join(kPages);
  client.demand(5);
  const PageRange range{Gfn{5}, 1};
  EXPECT_EQ(client.give(test::made_by([&](auto out) {
    return wire::write_ranges(out, FrameType::kAbsent, client.server, {}, test::mac_of(kSibling),
                              {&range, 1}, wire::kFlagSibling, 0);
  })),
            wire::Drop::kUnexpectedType);
  EXPECT_TRUE(client.engine.in_flight(Gfn{5}));
}

}  // namespace
}  // namespace snowfabric
