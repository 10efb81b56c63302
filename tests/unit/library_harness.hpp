// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "library/fetching.hpp"
#include "library/serving.hpp"
#include "tests/unit/fake_carrier.hpp"

/// Server and client of the library over a network in memory, in virtual time.
namespace snowfabric::testing {

using namespace std::chrono_literals;

inline constexpr std::uint64_t kImageId = 0x1234;
inline constexpr std::uint64_t kNbPages = 300;

inline Nanos now_ns{0}, step{0};
/// Each look at the clock takes some time.
inline Nanos virtual_clock() noexcept { return now_ns += step; }

using Page = std::array<std::byte, kPageSize>;

/// Every tenth page is zero.
inline Page library_page(std::uint64_t number) {
  Page page{};
  if (number % 10 != 0)
    for (std::size_t i = 0; i < page.size(); i += sizeof number)
      std::memcpy(page.data() + i, &number, sizeof number);
  return page;
}

inline wire::FrameType type_of(const FakeNet::Sent& frame) {
  return static_cast<wire::FrameType>(frame.payload[3]);
}

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
          Page bytes = library_page(page.value);
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
    for (const auto& [number, page] : client.pages) EXPECT_EQ(page, library_page(number)) << number;
  }

  FakeNet net;
  ServerConfig server_config;
  std::uint64_t nb_pages = kNbPages, bad_page = ~std::uint64_t{0};
  std::set<std::uint64_t> changed_pages;
  std::unique_ptr<Serving> server;
};

}  // namespace snowfabric::testing
