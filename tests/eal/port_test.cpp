// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/port.hpp"

#include <rte_eth_ring.h>

#include <cerrno>

#include <gmock/gmock.h>

#include "pmd-config/eal.hpp"
#include "tests/eal/mbufs.hpp"

namespace snowfabric {
namespace {

PortConfig ring_config() {
  PortConfig config;
  config.profile = load_profile("net_ring").value();
  config.profile.nb_mbufs = 1023;
  config.profile.nb_rxd = 256;
  config.profile.nb_txd = 256;
  config.name = "net_ring0";
  return config;
}

/// Errors and the one working port in one test: a closed net_ring vdev does not open again.
TEST(Port, OpensTheRingCarriesFramesAndGivesEveryMbufBack) {
  PortConfig config = ring_config();
  config.mtu = 9500;
  EXPECT_EQ(Port::open(config).error().errnum, EINVAL);  // more than the profile's max_mtu
  config.mtu = 500;
  EXPECT_EQ(Port::open(config).error().errnum, EINVAL);  // a page would not fit into 8 fragments
  config.mtu = 0;
  config.name = "net_ring7";
  EXPECT_EQ(Port::open(config).error().errnum, ENODEV);
  config.name = "";  // the only port
  config.groups = {group_address(1)};
  Result<Port> port = Port::open(config);
  ASSERT_TRUE(port) << port.error().what;
  EXPECT_EQ(port->name(), "net_ring0");
  EXPECT_EQ(port->mtu_bytes(), 4200U);
  EXPECT_EQ(port->nb_fragments(), 1U);
  EXPECT_TRUE(port->link_up());
  EXPECT_NE(port->mac(), MacAddr{});
  EXPECT_FALSE(port->mac().is_multicast());
  EXPECT_EQ(port->tx_mode(), TxMode::kZeroCopy);
  EXPECT_EQ(port->multicast_filter(), MulticastFilter::kSoftware);
  EXPECT_EQ(port->wait_fd(), -1);
  EXPECT_FALSE(port->kernel_drops());
  EXPECT_EQ(port->mbufs_in_use(), 0U);

  EthPort queue = port->queue();
  std::array<rte_mbuf*, 4> frames{};
  ASSERT_EQ(rte_pktmbuf_alloc_bulk(port->pool(), frames.data(), 4), 0);
  for (rte_mbuf* frame : frames) rte_pktmbuf_append(frame, 4154);  // a page in one segment
  ASSERT_EQ(queue.tx_burst(frames), 4);
  std::array<rte_mbuf*, 2> received{};
  ASSERT_EQ(queue.rx_burst(received), 2);
  EXPECT_EQ(received[0]->pkt_len, 4154U);
  EXPECT_EQ(port->mbufs_in_use(), 4U);
  rte_pktmbuf_free_bulk(received.data(), 2);
  EXPECT_EQ(port->close(), 0U);  // the two nobody received are drained
}

TEST(Port, FilterPreferenceFallsBackToWhatTheDeviceHas) {
  rte_ring* ring = rte_ring_create("filter", 64, SOCKET_ID_ANY, 0);
  ASSERT_GE(rte_eth_from_rings("filter", &ring, 1, &ring, 1, kAnySocket), 0);
  PortConfig config = ring_config();
  config.name = "net_ring_filter";
  config.profile.multicast = MulticastFilter::kList;  // net_ring has no list and no socket
  config.profile.multi_segs = false;
  config.groups = {group_address(1)};
  Result<Port> port = Port::open(config);
  ASSERT_TRUE(port) << port.error().what;
  EXPECT_EQ(port->multicast_filter(), MulticastFilter::kAllMulticast);
  EXPECT_EQ(rte_eth_allmulticast_get(port->port_id()), 1);
  EXPECT_EQ(port->set_groups({}), MulticastFilter::kSoftware);  // nothing to receive
  EXPECT_EQ(rte_eth_allmulticast_get(port->port_id()), 0);
  EXPECT_EQ(port->tx_mode(), TxMode::kCopy);
  EXPECT_EQ(port->close(), 0U);
  rte_ring_free(ring);
}

TEST(Port, CloseCountsTheMbufsThatDidNotComeBack) {
  rte_ring* ring = rte_ring_create("leak", 64, SOCKET_ID_ANY, 0);
  ASSERT_GE(rte_eth_from_rings("leak", &ring, 1, &ring, 1, kAnySocket), 0);
  PortConfig config = ring_config();
  config.name = "net_ring_leak";
  Result<Port> port = Port::open(config);
  ASSERT_TRUE(port) << port.error().what;
  rte_mbuf* kept = rte_pktmbuf_alloc(port->pool());
  EXPECT_EQ(port->close(), 1U);
  rte_pktmbuf_free(kept);
  EXPECT_EQ(port->mbufs_in_use(), 0U);
  rte_ring_free(ring);
}

TEST(Eal, StartsOncePerProcess) {
  EalConfig config;
  const auto again = Eal::init(config);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().errnum, EALREADY);
}

}  // namespace
}  // namespace snowfabric
