// SPDX-License-Identifier: BSD-3-Clause
// Lost pages, servers that are silent, slow or wrong, and junk: what the library makes of them.
#include <cerrno>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/library_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using LibraryTroubles = testing::Library;
using testing::FakeNet;
using ::testing::HasSubstr;
using testing::kImageId;
using testing::kNbPages;
using testing::now_ns;
using testing::step;
using testing::type_of;
using ::testing::UnorderedElementsAre;
using wire::FrameType;
using wire::Priority;

TEST_F(LibraryTroubles, LostPagesAreAskedForAgain) {
  int nb_pages_sent = 0;
  net.loses = [&](const FakeNet::Sent& frame) {
    return type_of(frame) == FrameType::kPage && ++nb_pages_sent % 3 == 0;
  };
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->run(30s));
  expect_all(*client);
  EXPECT_GT(client->fetching->stats().retries.read(), 0);
}

TEST_F(LibraryTroubles, PrefetchedPagesThatAreLostAgainAndAgainComeInTheEnd) {
  step = 2ms;
  bool cut = true;
  net.loses = [&](const FakeNet::Sent& frame) { return cut && type_of(frame) == FrameType::kPage; };
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{1}, 5, Priority::kPrefetch));
  EXPECT_EQ(client->fetching->run(5s).error().errnum, ETIMEDOUT);
  EXPECT_GT(client->fetching->stats().prefetch_given_up.read(), 0);
  cut = false;
  ASSERT_TRUE(client->fetching->run(10s));
  EXPECT_EQ(client->pages.size(), 5);
}

TEST_F(LibraryTroubles, AJoinWithoutServerTimesOutAndMayBeTriedAgain) {
  step = 1ms;
  server.reset();
  const auto client = make_client(1);
  EXPECT_EQ(client->fetching->join(200ms).error().errnum, ETIMEDOUT);
  start_server();
  EXPECT_TRUE(client->fetching->join(1s));
}

TEST_F(LibraryTroubles, ASilentServerIsReportedOnceAndMayComeBack) {
  step = 5ms;
  const auto client = joined(1);
  server.reset();
  ASSERT_TRUE(client->fetching->request(Gfn{0}, 5, Priority::kPrefetch));
  EXPECT_EQ(client->fetching->run(60s).error().errnum, EHOSTDOWN);
  EXPECT_EQ(client->fetching->run(1s).error().errnum, ETIMEDOUT);
  start_server(9000, 2);
  ASSERT_TRUE(client->fetching->run(10s));
  EXPECT_EQ(client->pages.size(), 5);
}

TEST_F(LibraryTroubles, PagesThatNeverFitTheirChecksumAreGivenUpEachAndTheOthersCome) {
  step = 5ms;
  changed_pages = {7, 8, 21};  // after the server has read them once
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  auto end = client->fetching->run(120s);
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().errnum, ENODATA);
  EXPECT_THAT(end.error().what, HasSubstr("does not deliver it"));
  while (!end) {
    ASSERT_EQ(end.error().errnum, ENODATA);
    end = client->fetching->run(10s);
  }
  EXPECT_THAT(client->unavailable, UnorderedElementsAre(7, 8, 21));
  EXPECT_EQ(client->pages.size(), kNbPages - 3);
  EXPECT_GT(
      client->fetching->drops().by_reason[static_cast<std::size_t>(wire::Drop::kBadCrc)].read(), 0);
}

TEST_F(LibraryTroubles, APageThatCannotBeReadEndsTheServer) {
  const auto client = joined(1);
  bad_page = 3;
  ASSERT_TRUE(client->fetching->request(Gfn{3}, 1, Priority::kDemand));
  EXPECT_EQ(client->fetching->run(10ms).error().errnum, ETIMEDOUT);
  std::atomic<bool> stop = false;
  const auto end = server->run(stop);
  ASSERT_FALSE(end);
  EXPECT_EQ(end.error().errnum, EIO);
  EXPECT_THAT(end.error().what, HasSubstr("page 3"));
}

TEST_F(LibraryTroubles, TimeOutsHoldWhileFramesComeWithoutEnd) {
  step = 1ms;
  const auto client = joined(1);
  server.reset();
  net.before_client_receives = [this] {
    for (std::size_t i = 0; i < Carrier::kBurst; ++i)
      net.send({{{2, 9}}, group_address(kImageId), FakeNet::Bytes(28)});
  };
  const auto late = make_client(2);
  Nanos before = now_ns;
  EXPECT_EQ(late->fetching->join(200ms).error().errnum, ETIMEDOUT);
  EXPECT_LE(now_ns - before, 210ms);
  ASSERT_TRUE(client->fetching->request(Gfn{1}, 1, Priority::kDemand));
  before = now_ns;
  EXPECT_EQ(client->fetching->run(200ms).error().errnum, ETIMEDOUT);
  EXPECT_EQ(client->fetching->run(0s).error().errnum, ETIMEDOUT);
  EXPECT_LE(now_ns - before, 210ms);
}

TEST_F(LibraryTroubles, AServerWithoutRoomIsToldFromNone) {
  step = 1ms;
  server_config.max_clients = 1;
  start_server();
  const auto first = joined(1);
  EXPECT_EQ(make_client(2)->fetching->join(300ms).error().errnum, EUSERS);
}

TEST_F(LibraryTroubles, ASlowServerOwesPagesAndDoesNotLackThem) {
  step = 1ms;
  nb_pages = 1500;  // 46 s of it, and a page is given up after 30
  server_config.flow = {
      .initial_bytes_per_s = 125'000, .floor_bytes_per_s = 125'000, .max_bytes_per_s = 125'000};
  start_server();
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, nb_pages, Priority::kDemand));
  const Nanos before = now_ns;
  const auto end = client->fetching->run(100s);
  ASSERT_TRUE(end) << end.error().what;
  EXPECT_GT(now_ns - before, 35s);
  EXPECT_EQ(client->pages.size(), nb_pages);
}

TEST_F(LibraryTroubles, ALinkThatTakesFramesSlowlyIsWaitedFor) {
  net.nb_per_flush = 1;
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->run(10s));
  expect_all(*client);
  EXPECT_EQ(client->fetching->stats().retries.read(), 0);
}

TEST_F(LibraryTroubles, JunkIsCountedAndHarmsNobody) {
  const auto client = joined(1);
  for (std::size_t size : {0U, 1U, 27U, 28U, 100U}) {
    net.send({{{2, 9}}, {{2, 0, 0, 0, 0, 0}}, FakeNet::Bytes(size, std::byte{0x53})});
    net.send({{{2, 9}}, {{2, 0, 0, 0, 0, 1}}, FakeNet::Bytes(size, std::byte{0x53})});
  }
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->run(10s));
  expect_all(*client);
  for (const DropCounters* drops : {&client->fetching->drops(), &server->drops()}) {
    std::uint64_t total = 0;
    for (const Counter& counter : drops->by_reason) total += counter.read();
    EXPECT_EQ(total, 5);
  }
}

}  // namespace
}  // namespace snowfabric
