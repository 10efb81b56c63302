// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/holes.hpp"

#include <unistd.h>

#include <array>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "fabric/base/unique_fd.hpp"

namespace snowfabric {
namespace {

constexpr std::uint64_t kPages = 16;

struct HolesTest : testing::Test {
  void SetUp() override {
    ASSERT_TRUE(file_);
    ASSERT_EQ(ftruncate(file_.get(), kPages * kPageSize), 0);
  }
  void touch(std::uint64_t page) const {
    ASSERT_EQ(pwrite(file_.get(), "x", 1, static_cast<off_t>(page * kPageSize)), 1);
  }
  [[nodiscard]] std::vector<PageRange> holes(std::uint64_t page, std::uint64_t nb_pages,
                                             std::uint64_t first,
                                             std::vector<PageRange> out = {}) const {
    append_holes(file_.get(), page * kPageSize, nb_pages * kPageSize, Gfn{first}, out);
    return out;
  }

  UniqueFd file_{memfd_create("holes", MFD_CLOEXEC)};
};

using Ranges = std::vector<PageRange>;

TEST_F(HolesTest, AreTheRangesBetweenTheData) {
  for (const std::uint64_t page : {3UL, 4UL, 9UL}) touch(page);
  EXPECT_EQ(holes(0, kPages, 0), (Ranges{{Gfn{0}, 3}, {Gfn{5}, 4}, {Gfn{10}, 6}}));
}

TEST_F(HolesTest, AnEmptyFileIsOneHoleAndAFullOneHasNone) {
  EXPECT_EQ(holes(0, kPages, 0), (Ranges{{Gfn{0}, kPages}}));
  for (std::uint64_t page = 0; page < kPages; ++page) touch(page);
  EXPECT_EQ(holes(0, kPages, 0), Ranges{});
}

TEST_F(HolesTest, OnlyThePartAskedForIsNamedAndByItsPlaceInTheImage) {
  touch(7);
  EXPECT_EQ(holes(4, 8, 100), (Ranges{{Gfn{100}, 3}, {Gfn{104}, 4}}));
  EXPECT_EQ(holes(4, 0, 100), Ranges{});
}

TEST_F(HolesTest, ARangeThatGoesOnWhereTheLastOneEndedExtendsIt) {
  touch(2);
  EXPECT_EQ(holes(0, 4, 10, {{Gfn{8}, 2}}), (Ranges{{Gfn{8}, 4}, {Gfn{13}, 1}}));
}

TEST_F(HolesTest, WhereNobodyKnowsOfHolesAllIsData) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const UniqueFd out{ends[0]}, in{ends[1]};  // lseek: ESPIPE
  Ranges none;
  append_holes(out.get(), 0, kPages * kPageSize, Gfn{0}, none);
  EXPECT_EQ(none, Ranges{});
}

}  // namespace
}  // namespace snowfabric
