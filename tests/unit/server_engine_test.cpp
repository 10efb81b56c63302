// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/server_engine.hpp"

#include <gmock/gmock.h>

#include "fabric/base/prng.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::report;
using testing::ElementsAre;
using testing::IsEmpty;
using wire::Drop;
using wire::FrameType;
using wire::Priority;
using wire::test_frames::want;
using Joined = test::JoinedServer;

// --- members -----------------------------------------------------------------------------------

TEST(ServerEngine, HelloIsAnsweredWithAWelcomeToThatClient) {
  test::TestServer server{100};
  EXPECT_EQ(server.hello(7), Drop::kNone);
  const ServerTx tx = server.only();
  EXPECT_EQ(tx.type, FrameType::kWelcome);
  EXPECT_EQ(tx.client_id, 7U);
  EXPECT_EQ(tx.dst, test::mac_of(7));
  test::Bytes frame(sizeof(wire::ControlBuffer));
  frame.resize(server.engine->write(tx, test::kServerMac, frame));
  const test::Parsed parsed{std::move(frame)};
  EXPECT_EQ(parsed.frame.welcome.nb_pages.host(), 100U);
  EXPECT_EQ(parsed.frame.incarnation, 1U);
}

TEST(ServerEngine, ARequestFromAnUnknownClientJoinsItAndIsAnsweredAllTheSame) {
  test::TestServer server{100};
  server.request(9, {want(5, 1)});
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 2U);
  EXPECT_EQ(sent[0].type, FrameType::kWelcome);
  EXPECT_EQ(sent[1].range, (PageRange{Gfn{5}, 1}));
  EXPECT_EQ(server.stats.joins.read(), 1U);
}

TEST(ServerEngine, WhatAnEarlierIncarnationWasAskedIsAnsweredByWelcomeAlone) {
  Joined server{100};
  server.who.incarnation = 99;
  EXPECT_EQ(server.request(1, {want(5, 1)}, test::report(1, 0, 0, 2000, 500)), Drop::kNone);
  EXPECT_EQ(server.only().type, FrameType::kWelcome);
  EXPECT_EQ(server.stats.wants.read(), 0U);
  EXPECT_EQ(server.stats.joins.read(), 3U);  // it was a member already
}

TEST(ServerEngine, AFullTableRefusesTheNextClientUntilOneLeaves) {
  ServerConfig config = test::unlimited();
  config.max_clients = 2;
  Joined server{100, config, {}, 2};
  EXPECT_EQ(server.hello(3), Drop::kUnexpectedType);
  EXPECT_EQ(server.request(4, {want(5, 1)}), Drop::kUnexpectedType);
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 2U);  // and no page
  for (std::uint64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(sent[i].type, FrameType::kBye);
    EXPECT_EQ(sent[i].client_id, 3 + i);
    EXPECT_EQ(sent[i].dst, test::mac_of(3 + i));
    EXPECT_EQ(sent[i].flags, 0);
  }
  EXPECT_EQ(server.stats.clients_refused.read(), 2U);
  EXPECT_EQ(server.bye(1), Drop::kNone);
  server.hello(3);
  EXPECT_EQ(server.only().type, FrameType::kWelcome);
}

TEST(ServerEngine, AByeForgetsTheClientAndASecondOneIsNotExpected) {
  Joined server{100};
  EXPECT_EQ(server.bye(2), Drop::kNone);
  EXPECT_EQ(server.bye(2), Drop::kUnexpectedType);
  EXPECT_EQ(server.stats.leaves.read(), 1U);
  server.now += 20ms;
  server.drain();
  EXPECT_EQ(server.stats.clients.read(), 2U);
}

TEST(ServerEngine, ASilentClientIsForgottenAfterTheTimeOutAndATalkingOneIsNot) {
  Joined server{100};
  server.now = 4s;
  server.request(1, {});
  server.now = 6s;
  server.drain();
  EXPECT_EQ(server.stats.clients_timed_out.read(), 2U);
  EXPECT_EQ(server.stats.clients.read(), 1U);
}

TEST(ServerEngine, FramesOfAnotherImageEpochOrSpaceAreRefused) {
  test::TestServer server{100};
  server.who.image_id ^= 1;
  EXPECT_EQ(server.hello(1), Drop::kForeignImage);
  server.who = {test::kImageId, 2, 1, 0};
  EXPECT_EQ(server.hello(1), Drop::kStaleEpoch);
  server.who = {test::kImageId, 1, 1, 5};
  EXPECT_EQ(server.hello(1), Drop::kOutOfRange);
  EXPECT_FALSE(server.engine->has_clients());
}

// --- priorities --------------------------------------------------------------------------------

TEST(ServerEngine, DemandGoesBeforePrefetchAndPrefetchBeforePush) {
  ServerConfig config = test::unlimited();
  config.push = true;
  Joined server{6, config, {}, 0};
  server.request(1, {want(4, 1, Priority::kPrefetch), want(5, 1, Priority::kDemand)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(5, 4, 0, 1, 2, 3));
  EXPECT_EQ(server.stats.tx_pages_pushed.read(), 4U);
}

TEST(ServerEngine, AQueuedPrefetchIsPromotedByADemandAndSentOnce) {
  Joined server{100};
  server.request(1, {want(10, 3, Priority::kPrefetch)});
  server.request(2, {want(12, 1, Priority::kDemand)});
  EXPECT_THAT(server.drain_pages(), ElementsAre(12, 10, 11));
  EXPECT_EQ(server.stats.wants_merged.read(), 1U);
}

TEST(ServerEngine, WhatItsQueuesDoNotTakeCanBeAskedForAgain) {
  constexpr std::uint64_t kPages = 320'000, kQueued = kPages / 4;
  Joined server{kPages};
  const auto ask_for_all = [&] {
    for (std::uint64_t page = 0; page < kPages; page += 256)
      server.request(1, {want(page, 256, Priority::kPrefetch)});
  };
  ask_for_all();
  EXPECT_EQ(server.stats.wants_overflow.read(), kPages - kQueued);
  EXPECT_EQ(server.drain_pages().size(), kQueued);
  ask_for_all();  // the first of them within the lockstep window
  EXPECT_EQ(server.stats.lockstep_hits.read(), kQueued);
  const auto sent = server.drain_pages();
  ASSERT_EQ(sent.size(), kQueued);
  EXPECT_EQ(sent.front(), kQueued);
}

TEST(ServerEngine, LockstepHoldsAfterHoursToo) {
  Joined server{100};
  for (int hour = 0; hour < 50; ++hour) {
    server.request(1, {want(5, 1)});
    ASSERT_THAT(server.drain_pages(), ElementsAre(5)) << hour;
    server.request(2, {want(5, 1)});
    ASSERT_THAT(server.drain_pages(), IsEmpty()) << hour;
    server.now += std::chrono::hours{1};
    for (const auto id : {1U, 2U, 3U}) server.hello(id);
    server.drain();
  }
}

TEST(ServerEngine, SaysWhichPageIsLikelyNext) {
  Joined server{100};
  EXPECT_FALSE(server.engine->upcoming());
  server.request(1, {want(10, 2, Priority::kPrefetch), want(20, 1, Priority::kDemand)});
  EXPECT_EQ(server.engine->upcoming(), Gfn{20});
  EXPECT_EQ(server.drain_pages().size(), 3U);
  EXPECT_FALSE(server.engine->upcoming());
}

TEST(ServerEngine, NothingIsPushedWithoutMembers) {
  ServerConfig config = test::unlimited();
  config.push = true;
  test::TestServer server{6, config};
  EXPECT_THAT(server.drain(), IsEmpty());
  server.hello(1);
  EXPECT_EQ(server.drain_pages().size(), 6U);
}

// --- pacing and reports ------------------------------------------------------------------------

TEST(ServerEngine, TheBucketPacesPagesButNotControlFrames) {
  ServerConfig config = test::unlimited();
  config.burst_bytes = 4000;
  config.flow.initial_bytes_per_s = 4.154e6;  // a page a millisecond
  Joined server{100, config};
  server.request(1, {want(0, 50)});
  EXPECT_EQ(server.drain_pages().size(), 1U);
  server.hello(2);
  EXPECT_EQ(server.only().type, FrameType::kWelcome);
  EXPECT_GT(server.engine->deadline(server.now), server.now);  // no spinning while it waits
  std::size_t nb_pages = 0;
  for (int i = 0; i < 20; ++i) {
    server.now += 1ms;
    nb_pages += server.drain_pages().size();
  }
  EXPECT_GE(nb_pages, 19U);
  EXPECT_LE(nb_pages, 21U);
}

TEST(ServerEngine, ATurnAsLongAsTheBucketHoldsCostsNoneOfTheRate) {
  ServerConfig config = test::unlimited();
  config.burst_bytes = 4000;
  config.flow.initial_bytes_per_s = 4.154e6;  // a page a millisecond
  for (const auto& [held, nb_pages] : {std::pair{0ms, 1U}, {10ms, 10U}}) {
    config.burst_time = held;
    Joined server{100, config};
    server.request(1, {want(0, 50)});
    EXPECT_EQ(server.drain_pages().size(), nb_pages);
    server.now += 10ms;
    EXPECT_EQ(server.drain_pages().size(), nb_pages);
  }
}

TEST(ServerEngine, APushRateHoldsBackWhatNobodyAskedForAndNothingElse) {
  ServerConfig config = test::unlimited();
  config.push = true;
  config.push_bytes_per_s = 4.154e5;  // a page in ten milliseconds
  config.burst_bytes = 4000;
  Joined server{100, config, {}, 0};
  server.hello(1);
  EXPECT_THAT(server.drain_pages(), ElementsAre(0));
  EXPECT_GT(server.engine->deadline(server.now), server.now);  // no spinning while it waits
  const Nanos began = server.now;
  for (const std::uint64_t page : {50U, 60U}) {
    server.now += 100us;
    server.request(1, {want(page, 1)});
    EXPECT_EQ(server.engine->deadline(server.now), server.now);
    EXPECT_THAT(server.drain_pages(), ElementsAre(page));
  }
  std::size_t nb_pages = 0;
  for (int nb_calls = 0; nb_calls < 2 * 20; ++nb_calls) {  // housekeeping comes as often
    server.now = std::max(server.now, server.engine->deadline(server.now));
    if (server.now > began + 195ms) break;
    nb_pages += server.drain_pages().size();
  }
  EXPECT_EQ(nb_pages, 20U);
  EXPECT_GT(server.now, began + 195ms);
}

TEST(ServerEngine, TheBucketCountsWhatAFrameHasBeyondTheEnginesBytes) {
  constexpr std::size_t kOverhead = 48;  // of a sealed frame
  ServerConfig config = test::unlimited();
  config.burst_bytes = 10 * (wire::page_wire_bytes(1) + kOverhead);
  for (const std::size_t overhead_bytes : {std::size_t{0}, kOverhead}) {
    config.frame_overhead_bytes = overhead_bytes;
    Joined server{100, config};
    server.request(1, {want(0, 50)});
    EXPECT_EQ(server.drain_pages().size(), overhead_bytes == 0 ? 11U : 10U);
  }
}

TEST(ServerEngine, WithNothingToSendTheDeadlineIsTheNextHousekeepingWhichAQuietTimeDelays) {
  Joined server{100};
  server.drain();
  EXPECT_EQ(server.engine->deadline(server.now), server.now + 100ms);
  server.now += 50ms;
  server.request(1, {});
  EXPECT_EQ(server.engine->deadline(server.now), server.now + 10ms);
}

/// Client 1 reports every 50 ms that it got half of what was sent. @return the rate afterwards
std::uint64_t rate_after_losses(Joined& server, std::uint64_t clock_us,
                                const std::vector<wire::WantEntry>& wants = {want(0, 256)}) {
  std::uint32_t frames = 0;
  for (int i = 0; i < 20; ++i) {
    server.request(1, wants, report(clock_us, frames, frames));
    for (const Nanos next = server.now + 50ms; server.now < next; server.now += 1ms) server.drain();
    clock_us += 50'000;
    frames += 100;
  }
  return server.stats.rate_bytes_per_s.read();
}

TEST(ServerEngine, ReportsOfLossLowerTheRate) {
  ServerConfig config;
  config.flow.initial_bytes_per_s = 20e6;
  Joined server{65536, config, {}, 1};
  EXPECT_LT(rate_after_losses(server, 0), 15'000'000U);
}

TEST(ServerEngine, ReportsOfLossLowerTheRateAlsoWhereAPushRateIsTheLimit) {
  for (const bool has_push_rate : {false, true}) {
    ServerConfig config;
    config.push = true;
    config.push_bytes_per_s = has_push_rate ? 10e6 : 0;
    config.flow.initial_bytes_per_s = 20e6;
    Joined server{65536, config, {}, 1};
    EXPECT_LT(rate_after_losses(server, 0, {}), 15'000'000U);
  }
}

/// Of two members, of which the second loses nothing, and this one, if any, is tagged.
std::uint64_t rate_by(FlowRule rule, std::uint64_t tagged = 0) {
  ServerConfig config;
  config.flow.rule = rule;
  config.flow.initial_bytes_per_s = 20e6;
  Joined server{65536, config, {}, 2};
  EXPECT_EQ(server.engine->tag(tagged), tagged != 0);
  server.request(2, {want(0, 256)});
  return rate_after_losses(server, 0);
}

TEST(ServerEngine, TheRateIsTheSlowestMembersTheFastestsOrBetweenThem) {
  EXPECT_EQ(rate_by(FlowRule::kMax), 20'000'000U);
  EXPECT_LT(rate_by(FlowRule::kMean), 20'000'000U);
  EXPECT_LT(rate_by(FlowRule::kMin), 15'000'000U);
  EXPECT_LT(rate_by(FlowRule::kEqual), rate_by(FlowRule::kMax));
  EXPECT_GT(rate_by(FlowRule::kEqual), rate_by(FlowRule::kMean));  // who loses asks for more
}

TEST(ServerEngine, ByTagsWhoHasNoneLowersNoRate) {
  EXPECT_EQ(rate_by(FlowRule::kTagged, 2), 20'000'000U);
  EXPECT_EQ(rate_by(FlowRule::kTagged, 1), rate_by(FlowRule::kMin));
  EXPECT_EQ(rate_by(FlowRule::kTagged), rate_by(FlowRule::kMean));
}

TEST(ServerEngine, ATagIsGoneWithTheMember) {
  Joined server{100};
  EXPECT_TRUE(server.engine->tag(2));
  EXPECT_EQ(server.bye(2), Drop::kNone);
  EXPECT_FALSE(server.engine->tag(2));
}

TEST(ServerEngine, AnAbsurdClockInAReportIsANewBaseLineAndNotTheEndOfReports) {
  for (const std::uint64_t absurd : {~std::uint64_t{0}, std::uint64_t{1} << 62U}) {
    ServerConfig config;
    config.flow.initial_bytes_per_s = 20e6;
    Joined server{65536, config, {}, 1};
    server.request(1, {}, report(1000));
    server.request(1, {}, report(absurd));
    EXPECT_LT(rate_after_losses(server, 1'000'000), 15'000'000U);
  }
}

// --- outside the image, zero pages ---------------------------------------------------------------

TEST(ServerEngine, OnlyThePartOfARangeOutsideTheImageIsAbsent) {
  Joined server{100};
  server.request(1, {want(98, 4), want(500, 2)});
  const auto sent = server.drain();
  ASSERT_EQ(sent.size(), 4U);
  EXPECT_EQ(sent[0].type, FrameType::kAbsent);
  EXPECT_EQ(sent[0].range, (PageRange{Gfn{100}, 2}));
  EXPECT_EQ(sent[0].dst, test::mac_of(1));
  EXPECT_EQ(sent[1].range, (PageRange{Gfn{500}, 2}));
  EXPECT_EQ(sent[2].range.first, Gfn{98});
  EXPECT_EQ(sent[3].range.first, Gfn{99});
  EXPECT_EQ(server.stats.wants_absent.read(), 4U);
}

/// The run of zero pages around `page`, page by page, within its block.
PageRange naive_run(const std::vector<std::uint64_t>& zeros, std::uint64_t nb_pages,
                    std::uint64_t page) {
  const auto zero = [&](std::uint64_t p) { return (zeros[p / 64] >> (p % 64) & 1U) != 0; };
  const std::uint64_t block = page / wire::kMaxRangePages * wire::kMaxRangePages;
  const std::uint64_t block_end = std::min(block + wire::kMaxRangePages, nb_pages);
  std::uint64_t first = page;
  while (first > block && zero(first - 1)) --first;
  std::uint64_t end = page;
  while (end < block_end && zero(end)) ++end;
  return {Gfn{first}, static_cast<std::uint32_t>(end - first)};
}

TEST(ServerEngine, AZeroPageIsAnsweredWithItsWholeRunOfTheAlignedBlock) {
  constexpr std::uint64_t kPages = 2 * wire::kMaxRangePages + 1000;
  Prng random{11};
  for (const double share : {0.5, 0.98, 0.9995, 1.0}) {
    SCOPED_TRACE(share);
    std::vector<std::uint64_t> zeros((kPages + 63) / 64);
    for (std::uint64_t p = 0; p < kPages; ++p)
      if (random.uniform() < share) zeros[p / 64] |= std::uint64_t{1} << (p % 64);
    Joined server{kPages, test::unlimited(), zeros, 1};
    for (std::uint64_t p = 0; p < kPages; p += 1 + random.next() % 40) {
      if ((zeros[p / 64] >> (p % 64) & 1U) == 0) continue;
      server.now += 50ms;  // outside every window
      server.request(1, {want(p, 1)});
      const ServerTx tx = server.only();
      ASSERT_EQ(tx.type, FrameType::kZeros);
      ASSERT_EQ(tx.range, naive_run(zeros, kPages, p)) << "page " << p;
    }
  }
}

TEST(ServerEngine, AskingForManyPagesOfOneZeroRunSendsItOnce) {
  Joined server{256, test::unlimited(), {~0ULL, ~0ULL, ~0ULL, ~0ULL}};
  server.request(1, {want(0, 200)});
  server.request(2, {want(255, 1)});
  const ServerTx tx = server.only();
  EXPECT_EQ(tx.range, (PageRange{Gfn{0}, 256}));
  EXPECT_TRUE(tx.dst.is_multicast());
}

}  // namespace
}  // namespace snowfabric
