// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include <gmock/gmock.h>

#include "memtap-dpdk/host.hpp"
#include "tests/unit/engine_harness.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric::test {

inline constexpr std::uint64_t kPages = 1024;

/// A host whose engine has joined; frames go the way the worker sends them.
struct HostTest : ::testing::Test {
  void SetUp() override { client.join(kPages); }

  unsigned poll() { return host.poll_faults(client.now); }
  void page_comes(std::uint64_t gfn) {
    if (!host.needs(Gfn{gfn})) {
      client.engine.forget(Gfn{gfn});
      return;
    }
    const auto arrival = client.page(gfn);
    ASSERT_TRUE(arrival);
    host.on_page(*arrival, client.now);
  }
  void zeros_come(PageRange range) {
    client.engine.take_range(wire::FrameType::kZeros, range, client.now);
    host.on_zeros(range, client.now);
  }
  void server_dies() {
    client.send_until(client.now + std::chrono::seconds{12});
    ASSERT_EQ(client.engine.state(), ClientState::kServerDead);
  }
  [[nodiscard]] std::vector<std::uint64_t> demands() const {
    std::vector<std::uint64_t> pages;
    client.engine.for_each_demand([&](Gfn page) { pages.push_back(page.value); });
    return pages;
  }
  static void expect_page(const FakeGuest& guest, std::uint64_t gfn) {
    EXPECT_TRUE(guest.has(gfn));
    EXPECT_TRUE(std::ranges::equal(guest.page(gfn), page_bytes(gfn))) << gfn;
  }

  TestClient client;
  HostStats stats;
  Host host{client.engine, stats, 0, 4};
  FakeGuest a{kPages}, b{kPages};
};

}  // namespace snowfabric::test
