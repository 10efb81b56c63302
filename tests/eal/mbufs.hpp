// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include <cstring>
#include <deque>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/eth_port.hpp"
#include "pmd-config/port.hpp"

namespace snowfabric {

/// Where the ring PMD wants an unsigned socket_id.
inline constexpr auto kAnySocket = static_cast<unsigned>(SOCKET_ID_ANY);

/// A pool that a test takes mbufs from; at the end it must be full again.
class MbufTest : public testing::Test {
 protected:
  void SetUp() override {
    pool_.reset(
        rte_pktmbuf_pool_create("test", 511, 0, 0, 2048 + RTE_PKTMBUF_HEADROOM, SOCKET_ID_ANY));
    ASSERT_NE(pool_, nullptr);
  }
  void TearDown() override { EXPECT_EQ(rte_mempool_in_use_count(pool_.get()), 0U); }

  /// A frame of one segment for each size, filled with bytes that count up from `first`.
  rte_mbuf* frame(std::initializer_list<std::uint16_t> segment_sizes, std::uint8_t first = 0) {
    rte_mbuf* head = nullptr;
    for (const std::uint16_t size : segment_sizes) {
      rte_mbuf* segment = rte_pktmbuf_alloc(pool_.get());
      auto* data = reinterpret_cast<std::uint8_t*>(rte_pktmbuf_append(segment, size));
      for (std::uint16_t i = 0; i < size; ++i) data[i] = first++;
      if (head == nullptr)
        head = segment;
      else
        rte_pktmbuf_chain(head, segment);
    }
    return head;
  }
  /// A short frame that carries a number.
  rte_mbuf* numbered(std::uint32_t number) {
    rte_mbuf* made = frame({64});
    made->dynfield1[0] = number;
    return made;
  }

  MempoolPtr pool_;
};

/// A port that takes at most `room` frames to send and hands out `to_receive`.
struct ScriptedPort {
  std::size_t room = 0;
  std::deque<rte_mbuf*> to_receive;
  std::vector<std::uint32_t> sent;

  std::uint16_t rx_burst(std::span<rte_mbuf*> burst) noexcept {
    std::uint16_t nb_rx = 0;
    while (nb_rx < burst.size() && !to_receive.empty()) {
      burst[nb_rx++] = to_receive.front();
      to_receive.pop_front();
    }
    return nb_rx;
  }
  std::uint16_t tx_burst(std::span<rte_mbuf*> burst) noexcept {
    const std::size_t nb_taken = std::min(room, burst.size());
    for (rte_mbuf* frame : burst.first(nb_taken)) {
      sent.push_back(frame->dynfield1[0]);
      rte_pktmbuf_free(frame);
    }
    room -= nb_taken;
    return static_cast<std::uint16_t>(nb_taken);
  }
};
static_assert(BurstPort<ScriptedPort>);

}  // namespace snowfabric
