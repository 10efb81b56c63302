// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/tree_guest.hpp"

#include <array>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "memtap-dpdk/host.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using test::TestClient;
using Node = std::array<std::byte, kPageSize>;

class TreeGuestTest : public testing::Test {
 protected:
  TreeGuestTest() {
    client.join(original.nb_nodes());
    host.attach(guest);
    host.complete(guest);
  }

  void comes(std::uint64_t i, const Node& node) {
    client.engine.forget(Gfn{i});
    host.on_page({.page = Gfn{i}, .bytes = node}, client.now);
    host.flush(client.now);
  }
  Node right(std::uint64_t i) {
    Node node;
    std::ranges::copy(original.node(Gfn{i}), node.begin());
    return node;
  }
  /// Turns of the loop until nothing more is asked for. @return what was, in pages
  std::vector<std::uint64_t> asked() {
    std::vector<std::uint64_t> pages;
    for (int turn = 0; turn < 3; ++turn) {
      host.poll_faults(client.now);
      for (const auto& want : client.send_wants())
        for (std::uint64_t i = 0; i < want.nb_pages.host(); ++i)
          pages.push_back(want.first.host() + i);
    }
    return pages;
  }

  HashTree original = HashTree::over(std::vector<Hash>(300, Hash{std::byte{7}}));
  HashTree copy = *HashTree::with_room_for(original.nb_nodes());
  TestClient client;
  HostStats stats;
  Host host{client.engine, stats, 0, 4};
  TreeGuest guest{copy};
};

TEST_F(TreeGuestTest, AllNodesAreAskedForAndCheckedOnceTheyAreThere) {
  EXPECT_THAT(asked(), testing::ElementsAre(0, 1, 2, 3));
  for (const std::uint64_t i : {3U, 1U, 0U}) comes(i, right(i));
  asked();
  EXPECT_TRUE(host.completing(guest));
  comes(2, right(2));
  asked();
  EXPECT_FALSE(host.completing(guest));
  EXPECT_EQ(guest.check(original.root()), 0U);
  EXPECT_TRUE(std::ranges::equal(copy.bytes(), original.bytes()));
}

TEST_F(TreeGuestTest, ANodeThatDoesNotFitIsAskedForAgain) {
  asked();
  for (std::uint64_t i = 0; i < original.nb_nodes(); ++i) comes(i, i == 2 ? Node{} : right(i));
  asked();
  EXPECT_EQ(guest.check(original.root()), 1U);
  host.complete(guest);
  EXPECT_THAT(asked(), testing::ElementsAre(2));
  comes(1, Node{});  // of no effect: it is there
  comes(2, right(2));
  asked();
  EXPECT_FALSE(host.completing(guest));
  EXPECT_EQ(guest.check(original.root()), 0U);
}

TEST_F(TreeGuestTest, ANodeThatSomebodySaysIsZeroIsNotBelievedForGood) {
  asked();
  for (const std::uint64_t i : {0U, 1U, 2U}) comes(i, right(i));
  client.engine.forget(Gfn{3});
  host.on_zeros({Gfn{3}, 1}, client.now);
  asked();
  EXPECT_EQ(guest.check(original.root()), 1U);
  host.complete(guest);
  EXPECT_THAT(asked(), testing::ElementsAre(3));
}

}  // namespace
}  // namespace snowfabric
