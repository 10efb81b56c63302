// SPDX-License-Identifier: BSD-3-Clause
// The C API over kernel sockets, on the loopback interface.
#include "library/udp_carrier.hpp"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "library/snowfabric.h"

namespace snowfabric {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr std::uint64_t kNbPages = 2000;
constexpr std::uint16_t kPort = 21400;

std::vector<std::uint8_t> page_of(std::uint64_t page) {
  std::vector<std::uint8_t> bytes(SF_PAGE_BYTES);
  if (page % 10 != 0) std::memcpy(bytes.data() + page, &page, sizeof page);
  return bytes;
}

extern "C" int read_page(void*, std::uint64_t page, void* out) {
  std::ranges::copy(page_of(page), static_cast<std::uint8_t*>(out));
  return 0;
}

struct Arrivals {
  std::uint64_t nb_right = 0, nb_wrong = 0;
};

extern "C" void count(void* user, std::uint64_t page, const void* bytes) {
  auto& arrivals = *static_cast<Arrivals*>(user);
  const bool right = std::memcmp(bytes, page_of(page).data(), SF_PAGE_BYTES) == 0;
  ++(right ? arrivals.nb_right : arrivals.nb_wrong);
}

sf_carrier loopback() {
  sf_carrier carrier{};
  carrier.interface = "lo";
  carrier.port = kPort;
  return carrier;
}

sf_server_options server_options() {
  sf_server_options options{};
  options.carrier = loopback();
  options.read_page = read_page;
  options.nb_pages = kNbPages;
  options.image_id = 0xfeed;
  return options;
}

sf_client_options client_options(Arrivals& arrivals) {
  sf_client_options options{};
  options.carrier = loopback();
  options.image_id = 0xfeed;
  options.on_page = count;
  options.user = &arrivals;
  return options;
}

/// Runs in a thread of its own while it lives.
class RunningServer {
 public:
  explicit RunningServer(const sf_server_options& options) {
    EXPECT_EQ(sf_server_open(&options, &server_), 0) << sf_error();
    thread_ = std::thread{[this] { EXPECT_EQ(sf_server_run(server_), 0) << sf_error(); }};
  }
  ~RunningServer() {
    sf_server_stop(server_);
    thread_.join();
    sf_server_close(server_);
  }
  [[nodiscard]] sf_server* get() const { return server_; }

 private:
  sf_server* server_ = nullptr;
  std::thread thread_;
};

void fetch_all(sf_client* client) {
  ASSERT_EQ(sf_client_join(client, 10'000), 0) << sf_error();
  ASSERT_EQ(sf_client_nb_pages(client), kNbPages);
  ASSERT_EQ(sf_client_request(client, 0, kNbPages, SF_PREFETCH), 0) << sf_error();
  ASSERT_EQ(sf_client_run(client, 60'000), 0) << sf_error();
  ASSERT_EQ(sf_client_nb_missing(client), 0);
}

TEST(UdpCarrier, TwoClientsOfOneHostGetAllPagesOnceOverTheWire) {
  const RunningServer server{server_options()};
  std::array<Arrivals, 2> arrivals;
  std::array<sf_client*, 2> clients{};
  for (std::size_t i = 0; i < clients.size(); ++i) {
    const sf_client_options options = client_options(arrivals[i]);
    ASSERT_EQ(sf_client_open(&options, &clients[i]), 0) << sf_error();
  }
  std::thread other{[&] { fetch_all(clients[1]); }};
  fetch_all(clients[0]);
  other.join();
  for (const Arrivals& a : arrivals) {
    EXPECT_EQ(a.nb_right, kNbPages);
    EXPECT_EQ(a.nb_wrong, 0);
  }
  sf_server_stats stats{};
  sf_server_get_stats(server.get(), &stats);
  EXPECT_EQ(stats.distinct_pages, kNbPages * 9 / 10);
  EXPECT_GE(stats.tx_bytes, stats.distinct_pages * SF_PAGE_BYTES);
  EXPECT_EQ(stats.rx_dropped, 0);
  EXPECT_EQ(stats.tx_failed, 0);
  for (sf_client* client : clients) sf_client_close(client);
}

TEST(UdpCarrier, FragmentsWhereTheMtuIsShort) {
  sf_server_options options = server_options();
  options.carrier.mtu_bytes = 1500;
  const RunningServer server{options};
  Arrivals arrivals;
  sf_client_options of_client = client_options(arrivals);
  of_client.carrier.mtu_bytes = 1500;
  sf_client* client = nullptr;
  ASSERT_EQ(sf_client_open(&of_client, &client), 0) << sf_error();
  fetch_all(client);
  EXPECT_EQ(arrivals.nb_right, kNbPages);
  sf_client_close(client);
}

TEST(UdpCarrier, AServerBeginsAtTheRateThatItIsTold) {
  sf_server_options options = server_options();
  options.initial_bytes_per_s = 1'250'000;
  const RunningServer server{options};
  Arrivals arrivals;
  const sf_client_options of_client = client_options(arrivals);
  sf_client* client = nullptr;
  ASSERT_EQ(sf_client_open(&of_client, &client), 0) << sf_error();
  ASSERT_EQ(sf_client_join(client, 10'000), 0) << sf_error();
  // 90 pages that are not zero: but for a burst of 64 KiB they take 243 ms, at 1 Gbit/s it would
  // be 3.
  ASSERT_EQ(sf_client_request(client, 0, 100, SF_PREFETCH), 0) << sf_error();
  const auto began = std::chrono::steady_clock::now();
  ASSERT_EQ(sf_client_run(client, 10'000), 0) << sf_error();
  EXPECT_GE(std::chrono::steady_clock::now() - began, 200ms);
  EXPECT_EQ(arrivals.nb_right, 100);
  sf_client_close(client);
}

TEST(UdpCarrier, AFloodOfDatagramsToAMemberDoesNotHideTheGroup) {
  constexpr std::uint64_t kImageId = 77;
  const UdpOptions options{.interface = "lo", .port = kPort + 10};
  auto server = UdpCarrier::open(options, Side::kServer, kImageId);
  auto client = UdpCarrier::open(options, Side::kClient, kImageId);
  ASSERT_TRUE(server && client);
  const auto send_from = [](Carrier& from, const MacAddr& dst, std::size_t nb_bytes) {
    const wire::EthHdr eth{.dst = dst, .src = from.address(), .type = wire::kEtherType};
    std::memcpy(from.room().data(), &eth, sizeof eth);
    from.push(sizeof eth + nb_bytes, {});
    EXPECT_EQ(from.flush(), 1);
  };
  for (int i = 0; i < 200; ++i) send_from(**server, (*client)->address(), 5);
  send_from(**server, group_address(kImageId), 50);
  bool came = false;
  for (int look = 0; look < 2; ++look)
    for (const Carrier::Received& frame : (*client)->receive()) came |= frame.payload.size() == 50;
  EXPECT_TRUE(came);
}

TEST(UdpCarrier, OptionsThatAreWrongAreRefusedWithAReason) {
  sf_server* server = nullptr;
  const auto refused = [&](const auto& change) {
    sf_server_options options = server_options();
    change(options);
    return sf_server_open(&options, &server);
  };
  EXPECT_EQ(refused([](auto& o) { o.carrier.interface = "nowhere0"; }), -ENODEV);
  EXPECT_THAT(sf_error(), HasSubstr("nowhere0"));
  EXPECT_EQ(refused([](auto& o) { o.carrier.group = "10.0.0.1"; }), -EINVAL);
  EXPECT_THAT(sf_error(), HasSubstr("10.0.0.1"));
  EXPECT_EQ(refused([](auto& o) { o.carrier.group = "everybody"; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.carrier.port = 65535; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.carrier.mtu_bytes = 100; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.image = "both"; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.read_page = nullptr; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.image_id = 0; }), -EINVAL);
  EXPECT_EQ(refused([](auto& o) { o.read_page = nullptr, o.image = "/nowhere/at/all"; }), -ENOENT);
  EXPECT_THAT(sf_error(), HasSubstr("/nowhere/at/all"));
  EXPECT_EQ(server, nullptr);

  sf_client* client = nullptr;
  Arrivals arrivals;
  sf_client_options options = client_options(arrivals);
  options.on_page = nullptr;
  EXPECT_EQ(sf_client_open(&options, &client), -EINVAL);
  options = client_options(arrivals);
  options.image_id = 0;
  EXPECT_EQ(sf_client_open(&options, &client), -EINVAL);
}

TEST(UdpCarrier, ALoopOfTheCallersOwnIsToldWhenToCall) {
  const RunningServer server{server_options()};
  Arrivals arrivals;
  const sf_client_options options = client_options(arrivals);
  sf_client* client = nullptr;
  ASSERT_EQ(sf_client_open(&options, &client), 0) << sf_error();
  ASSERT_EQ(sf_client_join(client, 10'000), 0) << sf_error();
  ASSERT_EQ(sf_client_request(client, 0, kNbPages, SF_DEMAND), 0);
  int status = 0;
  while ((status = sf_client_run(client, 0)) == -ETIMEDOUT) {
    pollfd ready{.fd = sf_client_fd(client), .events = POLLIN, .revents = 0};
    ::poll(&ready, 1, sf_client_timeout_ms(client));
  }
  EXPECT_EQ(status, 0) << sf_error();
  EXPECT_EQ(arrivals.nb_right, kNbPages);
  sf_client_close(client);
  sf_client_close(nullptr);
  sf_server_close(nullptr);
}

TEST(UdpCarrier, GroupsFollowFromTheImageAndAreOfTheOrganization) {
  const std::uint32_t one = ntohl(udp_group(1).s_addr), two = ntohl(udp_group(2).s_addr);
  EXPECT_NE(one, two);
  for (const std::uint32_t group : {one, two}) EXPECT_EQ(group & 0xFFFC0000U, 0xEFC00000U);
  EXPECT_EQ(ntohl(udp_group(0x1122334455667788).s_addr),
            0xEFC232F6U);  // as docs/wire-format.md says
}

}  // namespace
}  // namespace snowfabric
