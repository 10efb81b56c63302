// SPDX-License-Identifier: BSD-3-Clause
// What is left in memory of frames when their pool goes. EAL keeps the memory: without hugepages it
// gives none back to the kernel, so that the test may look.
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "pmd-config/port.hpp"

namespace snowfabric {
namespace {

constexpr std::uint16_t kRoomBytes = 2048;
constexpr unsigned kNbMbufs = 63;

/// Fills the room of every mbuf. @return where these are
std::vector<std::span<std::byte>> fill(rte_mempool& pool) {
  std::vector<rte_mbuf*> mbufs(kNbMbufs);
  EXPECT_EQ(rte_pktmbuf_alloc_bulk(&pool, mbufs.data(), kNbMbufs), 0);
  std::vector<std::span<std::byte>> rooms;
  for (rte_mbuf* mbuf : mbufs) {
    rooms.emplace_back(static_cast<std::byte*>(mbuf->buf_addr), mbuf->buf_len);
    std::memset(mbuf->buf_addr, 7, mbuf->buf_len);
  }
  rte_pktmbuf_free_bulk(mbufs.data(), kNbMbufs);
  return rooms;
}

std::ptrdiff_t nb_left(std::span<const std::byte> room) {
  return std::ranges::count(room, std::byte{7});
}

TEST(Pool, NothingIsLeftOfFramesWhenItGoes) {
  MempoolPtr pool{rte_pktmbuf_pool_create("wiped", kNbMbufs, 0, 0, kRoomBytes, SOCKET_ID_ANY)};
  ASSERT_NE(pool, nullptr);
  const auto rooms = fill(*pool);
  EXPECT_EQ(nb_left(rooms.front()), kRoomBytes);
  pool.reset();
  for (const auto room : rooms) EXPECT_EQ(nb_left(room), 0);
}

}  // namespace
}  // namespace snowfabric
