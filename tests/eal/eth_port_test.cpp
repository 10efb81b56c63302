// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/eth_port.hpp"

#include <rte_eth_ring.h>

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>

#include "tests/eal/mbufs.hpp"

namespace snowfabric {
namespace {

using TxTailTest = MbufTest;
using GatherTest = MbufTest;
using LossyPortTest = MbufTest;

std::vector<std::uint32_t> up_to(std::uint32_t n) {
  std::vector<std::uint32_t> numbers(n);
  std::iota(numbers.begin(), numbers.end(), 0U);
  return numbers;
}

TEST_F(TxTailTest, SendsEverythingInOrderWhateverThePortTakes) {
  TxTail<256> tail;
  ScriptedPort port;
  for (std::uint32_t i = 0; i < 100; ++i) ASSERT_TRUE(tail.push(numbered(i)));
  for (const std::size_t room : {0U, 1U, 31U, 33U, 7U}) {  // less, more and just a burst
    port.room = room;
    EXPECT_EQ(std::size_t{tail.flush(port)}, room);
  }
  EXPECT_EQ(tail.size(), 28U);
  ASSERT_TRUE(tail.push(numbered(100)));  // what comes later goes behind the tail
  port.room = 1000;
  EXPECT_EQ(tail.flush(port), 29);
  EXPECT_EQ(port.sent, up_to(101));
}

TEST_F(TxTailTest, CountsBackPressureOnceAFlushAndNotOtherwise) {
  TxTail<64> tail;
  ScriptedPort port{.room = 40, .to_receive = {}, .sent = {}};
  for (std::uint32_t i = 0; i < 64; ++i) ASSERT_TRUE(tail.push(numbered(i)));
  tail.flush(port);
  EXPECT_EQ(tail.back_pressure().read(), 1U);  // the ring was full: asked once, not again and again
  port.room = 64;
  tail.flush(port);
  tail.flush(port);  // nothing to send is no back-pressure
  EXPECT_EQ(tail.back_pressure().read(), 1U);
}

TEST_F(TxTailTest, AFullTailRefusesAndLeavesTheFrameToTheCaller) {
  TxTail<2> tail;
  ASSERT_TRUE(tail.push(numbered(0)));
  ASSERT_TRUE(tail.push(numbered(1)));
  EXPECT_EQ(tail.room(), 0U);
  rte_mbuf* third = numbered(2);
  EXPECT_FALSE(tail.push(third));
  rte_pktmbuf_free(third);
}

TEST_F(TxTailTest, FreesWhatWasNeverSent) {
  TxTail<8> tail;
  for (std::uint32_t i = 0; i < 8; ++i) ASSERT_TRUE(tail.push(numbered(i)));
}  // TearDown: the pool is full

TEST_F(TxTailTest, KeepsTheTailOfARealRingThatIsFull) {
  constexpr unsigned kSlots = 16;  // a DPDK ring of 16 holds 15
  rte_ring* ring = rte_ring_create("tail", kSlots, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ);
  ASSERT_NE(ring, nullptr);
  const int id = rte_eth_from_rings("tail", &ring, 1, &ring, 1, kAnySocket);
  ASSERT_GE(id, 0);
  const auto port_id = static_cast<std::uint16_t>(id);
  const rte_eth_conf conf{};
  ASSERT_EQ(rte_eth_dev_configure(port_id, 1, 1, &conf), 0);
  ASSERT_EQ(rte_eth_rx_queue_setup(port_id, 0, kSlots, 0, nullptr, pool_.get()), 0);
  ASSERT_EQ(rte_eth_tx_queue_setup(port_id, 0, kSlots, 0, nullptr), 0);
  ASSERT_EQ(rte_eth_dev_start(port_id), 0);
  EthPort port{port_id, 0};
  TxTail<64> tail;
  for (std::uint32_t i = 0; i < 20; ++i) ASSERT_TRUE(tail.push(numbered(i)));

  std::vector<std::uint32_t> received;
  for (const unsigned expected : {15U, 5U}) {
    EXPECT_EQ(tail.flush(port), expected);
    std::array<rte_mbuf*, kBurst> burst{};
    const std::uint16_t nb_rx = port.rx_burst(burst);
    for (rte_mbuf* mbuf : std::span{burst}.first(nb_rx)) {
      received.push_back(mbuf->dynfield1[0]);  // the very mbuf that was sent
      rte_pktmbuf_free(mbuf);
    }
  }
  EXPECT_EQ(received, up_to(20));
  rte_eth_dev_stop(port_id);
  rte_eth_dev_close(port_id);
  rte_ring_free(ring);
}

TEST_F(GatherTest, OneSegmentIsReadInPlace) {
  rte_mbuf* mbuf = frame({100});
  GatherBuffer buffer;
  const auto payload = gather(*mbuf, buffer);
  EXPECT_EQ(static_cast<const void*>(payload.data()), rte_pktmbuf_mtod_offset(mbuf, void*, 14));
  EXPECT_EQ(payload.size(), 86U);
  rte_pktmbuf_free(mbuf);
}

TEST_F(GatherTest, AChainIsCopiedWithoutItsEthernetHeader) {
  // header and page segments as memserver sends them, and a cut through the Ethernet header
  for (rte_mbuf* mbuf : {frame({58, 1400}, 7), frame({10, 3, 40, 900, 5}, 7)}) {
    GatherBuffer buffer;
    const auto payload = gather(*mbuf, buffer);
    ASSERT_EQ(payload.size(), mbuf->pkt_len - 14);
    EXPECT_EQ(payload.data(), buffer.data());
    for (std::size_t i = 0; i < payload.size(); ++i)
      ASSERT_EQ(payload[i], static_cast<std::byte>(7 + 14 + i)) << "byte " << i;
    rte_pktmbuf_free(mbuf);
  }
}

TEST_F(GatherTest, FramesTooShortTooLongOrLyingGiveNothing) {
  GatherBuffer buffer;
  rte_mbuf* empty = frame({14});
  EXPECT_TRUE(gather(*empty, buffer).empty());
  static_assert(wire::kMaxSealedBytes == 8314);
  rte_mbuf* too_long = frame({2000, 2000, 2000, 2000, 315});  // one byte over the longest frame
  EXPECT_TRUE(gather(*too_long, buffer).empty());
  rte_mbuf* longest = frame({2000, 2000, 2000, 2000, 314});
  EXPECT_EQ(gather(*longest, buffer).size(), buffer.size());
  rte_mbuf* lying = frame({58, 100});
  lying->pkt_len += 50;  // more than its segments hold
  EXPECT_TRUE(gather(*lying, buffer).empty());
  for (rte_mbuf* mbuf : {empty, too_long, longest, lying}) rte_pktmbuf_free(mbuf);
}

TEST_F(GatherTest, ReadEthTakesTheHeaderAcrossSegmentsAndRefusesLess) {
  wire::EthHdr header;
  rte_mbuf* split = frame({5, 20}, 1);
  ASSERT_TRUE(read_eth(*split, header));
  EXPECT_EQ(header.src, (MacAddr{{7, 8, 9, 10, 11, 12}}));
  EXPECT_EQ(header.type.host(), 0x0d0e);
  rte_mbuf* runt = frame({13});
  EXPECT_FALSE(read_eth(*runt, header));
  rte_pktmbuf_free(split);
  rte_pktmbuf_free(runt);
}

class LossRun {
 public:
  LossRun(double probability, std::uint64_t seed) : port_{Counting{}, probability, seed} {}
  /// Numbers of the frames that came through.
  std::vector<std::uint32_t> receive(auto make_frame, std::uint32_t nb_frames) {
    std::vector<std::uint32_t> kept;
    for (std::uint32_t next = 0; next < nb_frames;) {
      std::array<rte_mbuf*, kBurst> burst{};
      waiting.clear();
      for (std::size_t i = 0; i < kBurst && next < nb_frames; ++i)
        waiting.push_back(make_frame(next++));
      const std::uint16_t nb_rx = port_.rx_burst(burst);
      for (rte_mbuf* mbuf : std::span{burst}.first(nb_rx)) {
        kept.push_back(mbuf->dynfield1[0]);
        rte_pktmbuf_free(mbuf);
      }
    }
    return kept;
  }
  [[nodiscard]] std::uint64_t lost() const { return port_.rx_lost().read(); }

 private:
  static inline std::deque<rte_mbuf*> waiting;
  struct Counting {
    std::uint16_t rx_burst(std::span<rte_mbuf*> burst) noexcept {
      std::ranges::copy(waiting, burst.begin());
      return static_cast<std::uint16_t>(waiting.size());
    }
    std::uint16_t tx_burst(std::span<rte_mbuf*>) noexcept { return 0; }
  };
  LossyPort<Counting> port_;
};

TEST_F(LossyPortTest, LosesItsShareKeepsTheOrderAndFreesTheRest) {
  const auto make = [&](std::uint32_t i) { return numbered(i); };
  LossRun run{0.2, 42};
  const auto kept = run.receive(make, 10'000);
  EXPECT_TRUE(std::ranges::is_sorted(kept));
  EXPECT_EQ(kept.size() + run.lost(), 10'000U);
  EXPECT_NEAR(static_cast<double>(run.lost()), 2000, 200);  // five standard deviations
}

TEST_F(LossyPortTest, TheSeedDecidesWhichFramesAreLost) {
  const auto make = [&](std::uint32_t i) { return numbered(i); };
  const auto kept = LossRun{0.05, 1}.receive(make, 1000);
  EXPECT_EQ(kept, (LossRun{0.05, 1}.receive(make, 1000)));
  EXPECT_NE(kept, (LossRun{0.05, 2}.receive(make, 1000)));
}

TEST_F(LossyPortTest, ZeroLosesNothingAndOneLosesAll) {
  const auto make = [&](std::uint32_t i) { return numbered(i); };
  EXPECT_EQ((LossRun{0.0, 1}.receive(make, 500)), up_to(500));
  EXPECT_TRUE((LossRun{1.0, 1}.receive(make, 500)).empty());
}

}  // namespace
}  // namespace snowfabric
