// SPDX-License-Identifier: BSD-3-Clause
// What a client of the library gets, and when.
#include <algorithm>
#include <cerrno>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/library_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using testing::FakeNet;
using ::testing::HasSubstr;
using testing::kNbPages;
using testing::Library;
using testing::library_page;
using testing::now_ns;
using testing::type_of;
using testing::virtual_clock;
using wire::FrameType;
using wire::Priority;

TEST_F(Library, AClientGetsEachPageOnce) {
  const auto client = joined(1);
  EXPECT_EQ(client->fetching->nb_pages(), kNbPages);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  EXPECT_EQ(client->fetching->nb_missing(), kNbPages);
  ASSERT_TRUE(client->fetching->run(10s));
  EXPECT_EQ(client->fetching->nb_missing(), 0);
  expect_all(*client);
  // What is here is not asked for again.
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kDemand));
  EXPECT_EQ(client->fetching->nb_missing(), 0);
}

TEST_F(Library, PagesComeInFragmentsWhereFramesAreShort) {
  start_server(1472);
  const auto client = joined(1, 1472);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->run(10s));
  expect_all(*client);
  EXPECT_GT(client->fetching->stats().rx_fragments.read(), 0);
}

TEST_F(Library, ADemandOvertakesWhatIsPrefetched) {
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->request(Gfn{kNbPages - 1}, 1, Priority::kDemand));
  ASSERT_TRUE(client->fetching->run(10s));
  EXPECT_EQ(client->order.front(), kNbPages - 1);
}

TEST_F(Library, MoreIsPrefetchedSomeAtATimeAndBeforeTheServerRunsDry) {
  nb_pages = 2000;
  server_config.burst_bytes = 1U << 30U;
  start_server();
  std::uint8_t number = 0;
  for (const std::size_t nb_per_flush : {1U, 64U}) {  // slower than the client, and faster
    net.nb_per_flush = nb_per_flush;
    const auto client = joined(++number);
    std::size_t nb_requests = 0, before = 0, most = 0;
    net.loses = [&](const FakeNet::Sent& frame) {
      if (type_of(frame) != FrameType::kRequest) return false;
      ++nb_requests;
      most = std::max(most, client->pages.size() - std::exchange(before, client->pages.size()));
      return false;
    };
    ASSERT_TRUE(client->fetching->request(Gfn{0}, nb_pages, Priority::kPrefetch));
    ASSERT_TRUE(client->fetching->run(10s));
    EXPECT_EQ(client->pages.size(), nb_pages);
    EXPECT_LE(nb_requests, nb_pages / 16) << nb_per_flush;  // some are repeated
    EXPECT_LE(most, 256U) << nb_per_flush;                  // of 512 that it has asked for
    net.loses = [](const FakeNet::Sent&) { return false; };
  }
}

TEST_F(Library, PagesThatOthersAskForComeToo) {
  const auto asks = joined(1);
  const auto listens = joined(2);
  ASSERT_TRUE(asks->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(asks->fetching->run(10s));
  while (listens->fetching->turn(virtual_clock()) != 0) {
  }
  EXPECT_GE(listens->pages.size(), kNbPages * 98 / 100);  // the last go to who asks alone
  for (const auto& [number, page] : listens->pages) EXPECT_EQ(page, library_page(number)) << number;
  EXPECT_EQ(listens->fetching->stats().asked_prefetch.read(), 0);
}

TEST_F(Library, NoPageComesInsideOfTheJoin) {
  const auto asks = joined(1);
  ASSERT_TRUE(asks->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  const auto joins = make_client(2);
  int nb_looks = 0;
  net.before_client_receives = [&] {  // the WELCOME comes amid the others' pages
    static_cast<void>(server->turn(now_ns));
    if (++nb_looks % 2 == 0) return;
    const auto before = std::exchange(net.before_client_receives, [] {});
    static_cast<void>(asks->fetching->turn(now_ns));
    net.before_client_receives = before;
  };
  ASSERT_TRUE(joins->fetching->join(1s));
  EXPECT_TRUE(std::ranges::any_of(
      net.sent, [](const FakeNet::Sent& frame) { return type_of(frame) == FrameType::kPage; }));
  EXPECT_TRUE(joins->pages.empty());
  EXPECT_EQ(joins->fetching->nb_pages(), kNbPages);
  ASSERT_TRUE(joins->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(joins->fetching->run(10s));
  expect_all(*joins);
}

TEST_F(Library, RequestsOutsideOfTheImageOrBeforeTheJoinAreRefused) {
  const auto stranger = make_client(2);
  EXPECT_EQ(stranger->fetching->request(Gfn{0}, 1, Priority::kDemand).error().errnum, ENOTCONN);
  const auto client = joined(1);
  EXPECT_EQ(client->fetching->request(Gfn{kNbPages}, 1, Priority::kDemand).error().errnum, ERANGE);
  EXPECT_EQ(client->fetching->request(Gfn{1}, kNbPages, Priority::kDemand).error().errnum, ERANGE);
  EXPECT_EQ(client->fetching->request(Gfn{1}, ~std::uint64_t{0}, Priority::kDemand).error().errnum,
            ERANGE);
  EXPECT_TRUE(client->fetching->request(Gfn{kNbPages}, 0, Priority::kDemand));
  EXPECT_EQ(client->fetching->nb_missing(), 0);
}

TEST_F(Library, AClientWithAShorterMtuIsToldSo) {
  const auto client = make_client(1, 1472);
  const auto joined = client->fetching->join(1s);
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().errnum, EMSGSIZE);
  EXPECT_THAT(joined.error().what, HasSubstr("9000"));
}

TEST_F(Library, AStopEndsTheNextCallOnly) {
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  client->fetching->stop();
  EXPECT_EQ(client->fetching->run(10s).error().errnum, EINTR);
  EXPECT_TRUE(client->fetching->run(10s));
}

TEST_F(Library, ACallbackMayAskForMoreAndNotWait) {
  const auto client = joined(1);
  bool called = false;
  client->on_page = [&] {
    if (std::exchange(called, true)) return;
    EXPECT_EQ(client->fetching->run(1s).error().errnum, EBUSY);
    EXPECT_EQ(client->fetching->join(1s).error().errnum, EBUSY);
    EXPECT_TRUE(client->fetching->request(Gfn{200}, 5, Priority::kDemand));
  };
  ASSERT_TRUE(client->fetching->request(Gfn{1}, 1, Priority::kDemand));
  ASSERT_TRUE(client->fetching->run(1s));
  EXPECT_EQ(client->pages.size(), 6);
}

TEST_F(Library, ALoopOfTheCallersOwnIsCalledAtOnceForWhatItRequests) {
  const auto client = joined(1);
  static_cast<void>(client->fetching->turn(virtual_clock()));
  EXPECT_GT(client->fetching->deadline(now_ns), now_ns);
  ASSERT_TRUE(client->fetching->request(Gfn{1}, 1, Priority::kDemand));
  EXPECT_EQ(client->fetching->deadline(now_ns), now_ns);
}

TEST(PageSource, OfAFunctionNeedsAnIdAndPagesAndReportsWhatItReturned) {
  const auto zero = [](Gfn, std::span<std::byte, kPageSize>) { return 0; };
  EXPECT_EQ(PageSource::of_function(zero, 1, 0, 1).error().errnum, EINVAL);
  EXPECT_EQ(PageSource::of_function(zero, 0, 1, 1).error().errnum, EINVAL);
  EXPECT_EQ(PageSource::of_function(zero, std::uint64_t{1} << 32U, 1, 1).error().errnum, EFBIG);
  const auto bad = [](Gfn page, std::span<std::byte, kPageSize>) {
    return page.value == 2 ? ENOMEDIUM : 0;
  };
  const auto source = PageSource::of_function(bad, 4, 1, 1);
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().errnum, ENOMEDIUM);
  EXPECT_THAT(source.error().what, HasSubstr("page 2"));
}

}  // namespace
}  // namespace snowfabric
