// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/reassembler.hpp"

#include <algorithm>

#include <gtest/gtest.h>

#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using test::Bytes;
using test::page_bytes;

/// Adds one fragment of page_bytes(gfn). @return the whole page, when it is
std::span<const std::byte> add(Reassembler& parts, std::uint64_t gfn, std::size_t fragment,
                               std::size_t nb_fragments = 3, std::uint32_t crc = 7) {
  const Bytes page = page_bytes(gfn);
  const wire::PageBody body{.gfn = gfn,
                            .crc32c = crc,
                            .fragment = static_cast<std::uint8_t>(fragment),
                            .nb_fragments = static_cast<std::uint8_t>(nb_fragments),
                            .reserved = std::uint16_t{0}};
  return parts.add(body, std::span{page}.subspan(fragment * wire::fragment_stride(nb_fragments),
                                                 wire::fragment_bytes(fragment, nb_fragments)));
}

TEST(Reassembler, FragmentsInAnyOrderMakeTheWholePage) {
  for (std::size_t n = 1; n <= wire::kMaxFragments; ++n) {
    Reassembler parts{8};
    for (std::size_t i = n - 1; i > 0; --i) EXPECT_TRUE(add(parts, 42, i, n).empty());
    EXPECT_TRUE(std::ranges::equal(add(parts, 42, 0, n), page_bytes(42))) << n << " fragments";
    EXPECT_EQ(parts.missing(Gfn{42}), 0U);  // nothing is kept of a page that is done
  }
}

TEST(Reassembler, MissingNamesExactlyTheFragmentsNotYetHere) {
  Reassembler parts{8};
  EXPECT_EQ(parts.missing(Gfn{5}), 0U);  // none is here: ask for the whole page
  add(parts, 5, 1);
  EXPECT_EQ(parts.missing(Gfn{5}), 0b101U);
  add(parts, 5, 1);  // a second copy
  EXPECT_EQ(parts.missing(Gfn{5}), 0b101U);
  add(parts, 5, 2);
  EXPECT_EQ(parts.missing(Gfn{5}), 0b001U);
}

TEST(Reassembler, FragmentsOfAnotherVersionOfThePageAreNotMixedIn) {
  Reassembler parts{8};
  add(parts, 5, 0, 3, 111);
  add(parts, 5, 1, 3, 222);  // another checksum: begins anew
  EXPECT_EQ(parts.missing(Gfn{5}), 0b101U);
  add(parts, 5, 0, 2, 222);  // another count: begins anew
  EXPECT_EQ(parts.missing(Gfn{5}), 0b10U);
}

TEST(Reassembler, ThePagesBeyondItsCapacityDisplaceTheOldestAndAreCounted) {
  Reassembler parts{8};  // one set
  for (std::uint64_t gfn = 0; gfn < 8; ++gfn) add(parts, gfn, 0);
  EXPECT_EQ(parts.evicted(), 0U);
  add(parts, 100, 0);
  EXPECT_EQ(parts.evicted(), 1U);
  EXPECT_EQ(parts.missing(Gfn{0}), 0U);  // the oldest is gone
  EXPECT_NE(parts.missing(Gfn{1}), 0U);
  EXPECT_NE(parts.missing(Gfn{100}), 0U);
}

TEST(Reassembler, AFreeSlotIsTakenBeforeAnythingIsDisplaced) {
  Reassembler parts{8};
  for (std::uint64_t gfn = 0; gfn < 8; ++gfn) add(parts, gfn, 0);
  add(parts, 3, 1);
  EXPECT_FALSE(add(parts, 3, 2).empty());  // page 3 is done: its slot is free
  add(parts, 100, 0);
  EXPECT_EQ(parts.evicted(), 0U);
  for (const std::uint64_t gfn : {0U, 1U, 2U, 4U, 5U, 6U, 7U, 100U})
    EXPECT_EQ(parts.missing(Gfn{gfn}), 0b110U) << gfn;
}

}  // namespace
}  // namespace snowfabric
