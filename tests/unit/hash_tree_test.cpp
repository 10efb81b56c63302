// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/hash_tree.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fabric/base/hex.hpp"

namespace snowfabric {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Page = std::array<std::byte, kPageSize>;

/// Page 0 is zero; no two others are the same.
Page page_of(std::uint64_t gfn) {
  Page page{};
  std::memcpy(page.data() + 100, &gfn, sizeof gfn);
  return page;
}

HashTree tree_over(std::uint64_t nb_pages) {
  std::vector<Hash> hashes;
  for (std::uint64_t gfn = 0; gfn < nb_pages; ++gfn) hashes.push_back(hash_page(page_of(gfn), 0));
  return HashTree::over(hashes);
}

/// As memtap gets it: node by node.
HashTree copy_of(const HashTree& tree) {
  auto copy = HashTree::with_room_for(tree.nb_nodes());
  EXPECT_TRUE(copy);
  for (std::uint64_t i = 0; i < tree.nb_nodes(); ++i)
    std::ranges::copy(tree.bytes().subspan(i * kPageSize, kPageSize), copy->node(Gfn{i}).begin());
  return std::move(*copy);
}

// Both made by sha256sum(1).
TEST(HashTree, HashesAreSha256OfTheBytesAndTheLevel) {
  EXPECT_EQ(to_hex(hash_page(Page{}, 0)),
            "b587fa297299ce9c602e58292b51379402bf7b1074f6b18679c2fb871c917ca8");
  EXPECT_EQ(to_hex(tree_over(1).root()),
            "c0cf69ef18ab160821ca8d3159dc31f826b8f7b99d9177e60597189215d71af6");
}

TEST(HashTree, HasOneHashForEachPageAndOneForEachNodeBelowTheTop) {
  for (const auto& [nb_pages, nb_nodes] :
       {std::pair{1U, 1U}, {128U, 1U}, {129U, 3U}, {16384U, 129U}, {16385U, 132U}}) {
    const HashTree tree = HashTree::over(std::vector<Hash>(nb_pages, Hash{std::byte{1}}));
    EXPECT_EQ(tree.nb_nodes(), nb_nodes) << nb_pages;
    EXPECT_TRUE(tree.is_over(nb_pages));
  }
  EXPECT_FALSE(tree_over(129).is_over(128));
  EXPECT_FALSE(tree_over(129).is_over(257));
  EXPECT_FALSE(tree_over(1).is_over(0));
}

TEST(HashTree, NoTreeHasNodesForHalfALevel) {
  for (const std::uint64_t nb_nodes : {0U, 2U, 130U, 131U})
    EXPECT_FALSE(HashTree::with_room_for(nb_nodes)) << nb_nodes;
}

TEST(HashTree, OnlyAPagesOwnBytesFit) {
  const HashTree tree = tree_over(300);
  for (const std::uint64_t gfn : {0U, 1U, 127U, 128U, 299U}) {
    Page page = page_of(gfn);
    EXPECT_TRUE(tree.fits(Gfn{gfn}, page)) << gfn;
    EXPECT_FALSE(tree.fits(Gfn{gfn + 1}, page)) << gfn;
    page.back() ^= std::byte{1};
    EXPECT_FALSE(tree.fits(Gfn{gfn}, page)) << gfn;
  }
}

TEST(HashTree, APageBehindTheLastHasNoBytesThatFit) {
  const HashTree tree = tree_over(300);
  EXPECT_TRUE(tree.is_over(300));
  EXPECT_FALSE(tree.is_over(301)) << "though it has room for it";
  EXPECT_FALSE(tree.is_over(299)) << "though a page is behind";
  EXPECT_FALSE(tree.fits(Gfn{300}, page_of(300)));
  EXPECT_EQ(tree.nb_zero({Gfn{300}, 1}), 0U);
}

TEST(HashTree, ACopyOfAllNodesIsTheTreeOfTheRoot) {
  for (const std::uint64_t nb_pages : {1U, 300U, 16385U}) {
    const HashTree tree = tree_over(nb_pages);
    EXPECT_THAT(copy_of(tree).misfits(tree.root()), IsEmpty()) << nb_pages;
  }
}

TEST(HashTree, AChangedNodeIsFoundAndWhatIsBelowItIsNotLookedAt) {
  const HashTree tree = tree_over(16385);  // 1 above 2 above 129
  HashTree copy = copy_of(tree);
  copy.node(Gfn{131}).back() ^= std::byte{1};  // below node 2
  EXPECT_THAT(copy.misfits(tree.root()), ElementsAre(Gfn{131}));
  copy.node(Gfn{2}).front() ^= std::byte{1};
  copy.node(Gfn{3}).front() ^= std::byte{1};  // below node 1
  EXPECT_THAT(copy.misfits(tree.root()), ElementsAre(Gfn{2}, Gfn{3}));
  copy.node(Gfn{0}).back() ^= std::byte{1};
  EXPECT_THAT(copy.misfits(tree.root()), ElementsAre(Gfn{0}));
}

TEST(HashTree, ATreeThatIsCutShortIsNotTheRoots) {
  const HashTree tree = tree_over(600);  // 1 above 5
  HashTree cut = *HashTree::with_room_for(3);
  for (std::uint64_t i = 0; i < 3; ++i)
    std::ranges::copy(tree.bytes().subspan(i * kPageSize, kPageSize), cut.node(Gfn{i}).begin());
  EXPECT_THAT(cut.misfits(tree.root()), ElementsAre(Gfn{0}));
}

TEST(HashTree, ANodeDoesNotPassForOneOfAnotherLevel) {
  HashTree tree = tree_over(300);
  HashTree lower = *HashTree::with_room_for(1);
  std::ranges::copy(tree.node(Gfn{0}), lower.node(Gfn{0}).begin());  // its children as pages
  EXPECT_THAT(lower.misfits(tree.root()), ElementsAre(Gfn{0}));
}

TEST(HashTree, ZeroPagesAreCountedFromTheFrontOfARange) {
  std::vector<Hash> hashes(200, hash_page(Page{}, 0));
  hashes[150] = hash_page(page_of(1), 0);
  const HashTree tree = HashTree::over(hashes);
  EXPECT_EQ(tree.nb_zero({Gfn{0}, 200}), 150U);
  EXPECT_EQ(tree.nb_zero({Gfn{100}, 20}), 20U);
  EXPECT_EQ(tree.nb_zero({Gfn{150}, 20}), 0U);
}

}  // namespace
}  // namespace snowfabric
