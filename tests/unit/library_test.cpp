// SPDX-License-Identifier: BSD-3-Clause
// Server and client of the library over a network in memory, in virtual time.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "library/fetching.hpp"
#include "library/serving.hpp"
#include "tests/unit/fake_carrier.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using testing::FakeCarrier;
using testing::FakeNet;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;
using wire::FrameType;
using wire::Priority;

constexpr std::uint64_t kImageId = 0x1234;
constexpr std::uint64_t kNbPages = 300;

Nanos now_ns{0}, step{0};
/// Each look at the clock takes some time.
Nanos virtual_clock() noexcept { return now_ns += step; }

using Page = std::array<std::byte, kPageSize>;

/// Every tenth page is zero.
Page page_of(std::uint64_t number) {
  Page page{};
  if (number % 10 != 0)
    for (std::size_t i = 0; i < page.size(); i += sizeof number)
      std::memcpy(page.data() + i, &number, sizeof number);
  return page;
}

FrameType type_of(const FakeNet::Sent& frame) { return static_cast<FrameType>(frame.payload[3]); }

class Library : public ::testing::Test {
 protected:
  struct Client {
    std::map<std::uint64_t, Page> pages;
    std::vector<std::uint64_t> order, unavailable;
    std::function<void()> on_page;  // called with each
    std::unique_ptr<Fetching> fetching;
  };

  Library() {
    now_ns = 1s;
    step = 10us;
    net.before_client_receives = [this] {
      if (server) static_cast<void>(server->turn(now_ns));
    };
    start_server();
  }

  void start_server(std::uint16_t mtu_bytes = 9000, std::uint32_t incarnation = 1) {
    server.reset();
    auto pages = PageSource::of_function(
        [this](Gfn page, std::span<std::byte, kPageSize> out) {
          if (page.value == bad_page) return EIO;
          Page bytes = page_of(page.value);
          if (changed_pages.contains(page.value)) bytes[7] ^= std::byte{1};
          std::ranges::copy(bytes, out.begin());
          return 0;
        },
        nb_pages, kImageId, 1);
    ASSERT_TRUE(pages);
    ServerConfig config = server_config;
    config.incarnation = incarnation;
    server = std::make_unique<Serving>(std::move(*pages),
                                       std::make_unique<FakeCarrier>(net, 0, mtu_bytes), config);
  }

  std::unique_ptr<Client> make_client(std::uint8_t number, std::uint16_t mtu_bytes = 9000) {
    auto client = std::make_unique<Client>();
    ClientConfig config;
    config.client_id = number;
    config.image_id = kImageId;
    config.epoch = 1;
    client->fetching = std::make_unique<Fetching>(
        std::make_unique<FakeCarrier>(net, number, mtu_bytes), config,
        Fetching::Callbacks{
            .on_page =
                [c = client.get()](Gfn page, std::span<const std::byte, kPageSize> bytes) {
                  EXPECT_FALSE(c->pages.contains(page.value)) << page.value << " came twice";
                  std::ranges::copy(bytes, c->pages[page.value].begin());
                  c->order.push_back(page.value);
                  if (c->on_page) c->on_page();
                },
            .on_unavailable =
                [c = client.get()](Gfn page) { c->unavailable.push_back(page.value); }},
        virtual_clock);
    return client;
  }

  std::unique_ptr<Client> joined(std::uint8_t number, std::uint16_t mtu_bytes = 9000) {
    auto client = make_client(number, mtu_bytes);
    const auto ok = client->fetching->join(1s);
    EXPECT_TRUE(ok) << ok.error().what;
    return client;
  }

  static void expect_all(const Client& client) {
    ASSERT_EQ(client.pages.size(), kNbPages);
    for (const auto& [number, page] : client.pages) EXPECT_EQ(page, page_of(number)) << number;
  }

  FakeNet net;
  ServerConfig server_config;
  std::uint64_t nb_pages = kNbPages, bad_page = ~std::uint64_t{0};
  std::set<std::uint64_t> changed_pages;
  std::unique_ptr<Serving> server;
};

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
  for (const auto& [number, page] : listens->pages) EXPECT_EQ(page, page_of(number)) << number;
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

TEST_F(Library, LostPagesAreAskedForAgain) {
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

TEST_F(Library, PrefetchedPagesThatAreLostAgainAndAgainComeInTheEnd) {
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

TEST_F(Library, AJoinWithoutServerTimesOutAndMayBeTriedAgain) {
  step = 1ms;
  server.reset();
  const auto client = make_client(1);
  EXPECT_EQ(client->fetching->join(200ms).error().errnum, ETIMEDOUT);
  start_server();
  EXPECT_TRUE(client->fetching->join(1s));
}

TEST_F(Library, AClientWithAShorterMtuIsToldSo) {
  const auto client = make_client(1, 1472);
  const auto joined = client->fetching->join(1s);
  ASSERT_FALSE(joined);
  EXPECT_EQ(joined.error().errnum, EMSGSIZE);
  EXPECT_THAT(joined.error().what, HasSubstr("9000"));
}

TEST_F(Library, ASilentServerIsReportedOnceAndMayComeBack) {
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

TEST_F(Library, PagesThatNeverFitTheirChecksumAreGivenUpEachAndTheOthersCome) {
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

TEST_F(Library, AStopEndsTheNextCallOnly) {
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  client->fetching->stop();
  EXPECT_EQ(client->fetching->run(10s).error().errnum, EINTR);
  EXPECT_TRUE(client->fetching->run(10s));
}

TEST_F(Library, APageThatCannotBeReadEndsTheServer) {
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

TEST_F(Library, TimeOutsHoldWhileFramesComeWithoutEnd) {
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

TEST_F(Library, AServerWithoutRoomIsToldFromNone) {
  step = 1ms;
  server_config.max_clients = 1;
  start_server();
  const auto first = joined(1);
  EXPECT_EQ(make_client(2)->fetching->join(300ms).error().errnum, EUSERS);
}

TEST_F(Library, ASlowServerOwesPagesAndDoesNotLackThem) {
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

TEST_F(Library, ALinkThatTakesFramesSlowlyIsWaitedFor) {
  net.nb_per_flush = 1;
  const auto client = joined(1);
  ASSERT_TRUE(client->fetching->request(Gfn{0}, kNbPages, Priority::kPrefetch));
  ASSERT_TRUE(client->fetching->run(10s));
  expect_all(*client);
  EXPECT_EQ(client->fetching->stats().retries.read(), 0);
}

TEST_F(Library, JunkIsCountedAndHarmsNobody) {
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
