// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/arrival_buffer.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using Page = std::array<std::byte, kPageSize>;

/// Bytes that no other page has: the number, over and over.
Page page_of(std::uint64_t gfn) {
  Page page;
  for (std::size_t i = 0; i < kPageSize; i += sizeof gfn)
    std::memcpy(page.data() + i, &gfn, sizeof gfn);
  return page;
}

bool add(ArrivalBuffer& buffer, std::uint64_t gfn) { return buffer.add(Gfn{gfn}, page_of(gfn)); }

struct Flushed {
  std::uint64_t first;
  std::size_t nb_pages;
  bool operator==(const Flushed&) const = default;
};

/// Flushes, checks every byte, returns the runs in the order they came.
std::vector<Flushed> flush(ArrivalBuffer& buffer) {
  std::vector<Flushed> runs;
  buffer.flush([&](Gfn first, std::span<const std::byte> pages) {
    runs.push_back({first.value, pages.size() / kPageSize});
    for (std::size_t i = 0; i < pages.size() / kPageSize; ++i)
      EXPECT_TRUE(
          std::ranges::equal(pages.subspan(i * kPageSize, kPageSize), page_of(first.value + i)))
          << "page " << first.value + i;
  });
  return runs;
}

TEST(ArrivalBuffer, NeighboursLeaveAsOneRunInAscendingOrderHoweverTheyCame) {
  ArrivalBuffer buffer{16};
  for (const std::uint64_t gfn : {7U, 100U, 5U, 6U, 101U, 50U}) EXPECT_TRUE(add(buffer, gfn));
  EXPECT_EQ(flush(buffer), (std::vector<Flushed>{{5, 3}, {50, 1}, {100, 2}}));
  EXPECT_TRUE(buffer.empty());
  EXPECT_FALSE(buffer.contains(Gfn{5}));
  EXPECT_TRUE(flush(buffer).empty());
}

TEST(ArrivalBuffer, PagesThatCameInOrderAreHandedOutWithoutASecondCopy) {
  ArrivalBuffer buffer{200};
  for (std::uint64_t gfn = 0; gfn < 200; ++gfn) ASSERT_TRUE(add(buffer, 1000 + gfn));
  // One run, longer than any that is gathered by copying.
  EXPECT_EQ(flush(buffer), (std::vector<Flushed>{{1000, 200}}));
}

TEST(ArrivalBuffer, ARunThatMustBeGatheredIsSplitAtTheStagingArea) {
  ArrivalBuffer buffer{200};
  for (std::uint64_t gfn = 200; gfn-- > 0;) ASSERT_TRUE(add(buffer, gfn));
  EXPECT_EQ(flush(buffer), (std::vector<Flushed>{{0, 64}, {64, 64}, {128, 64}, {192, 8}}));
}

TEST(ArrivalBuffer, ASecondCopyOfAPageIsRefusedAndTheFirstKept) {
  ArrivalBuffer buffer{4};
  EXPECT_TRUE(add(buffer, 9));
  EXPECT_FALSE(buffer.add(Gfn{9}, page_of(1234)));
  EXPECT_EQ(buffer.size(), 1U);
  EXPECT_EQ(flush(buffer), (std::vector<Flushed>{{9, 1}}));
}

TEST(ArrivalBuffer, AFullBufferRefusesPagesAndTakesThemAgainAfterAFlush) {
  ArrivalBuffer buffer{2};
  EXPECT_TRUE(add(buffer, 1));
  EXPECT_FALSE(buffer.full());
  EXPECT_TRUE(add(buffer, 2));
  EXPECT_TRUE(buffer.full());
  EXPECT_FALSE(add(buffer, 3));
  EXPECT_FALSE(buffer.contains(Gfn{3}));
  flush(buffer);
  EXPECT_TRUE(add(buffer, 3));
}

TEST(ArrivalBuffer, AgreesWithASetOverManyRandomRounds) {
  constexpr unsigned kSeed = 42;
  SCOPED_TRACE(kSeed);
  std::mt19937_64 random{kSeed};
  ArrivalBuffer buffer{64};
  for (int round = 0; round < 50; ++round) {
    std::set<std::uint64_t> expected;
    const std::uint64_t far = round % 2 == 0 ? 0 : std::uint64_t{1} << 40U;
    while (!buffer.full()) {
      const std::uint64_t gfn = far + random() % 128;
      EXPECT_EQ(buffer.contains(Gfn{gfn}), expected.contains(gfn));
      EXPECT_EQ(add(buffer, gfn), expected.insert(gfn).second);
    }
    std::set<std::uint64_t> flushed;
    for (const Flushed& run : flush(buffer))
      for (std::size_t i = 0; i < run.nb_pages; ++i) flushed.insert(run.first + i);
    EXPECT_EQ(flushed, expected);
  }
}

}  // namespace
}  // namespace snowfabric
