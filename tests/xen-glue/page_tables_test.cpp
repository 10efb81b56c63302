// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/page_tables.hpp"

#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "tests/xen-glue/page_table_builder.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr std::uint64_t kNbPages = 32;
constexpr std::uint64_t kAddress = 0xffff'd001'40e0'9000;  // no index is 0
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;

class PageTables : public testing::Test {
 protected:
  /// As page_at() finds it in what a test has written.
  [[nodiscard]] std::optional<Gfn> find(const CpuRecord& cpu, std::uint64_t address) const {
    const ReadRam read = [this](std::uint64_t at, std::span<std::byte> out) {
      if (at + out.size() > ram_.size()) return false;
      std::memcpy(out.data(), ram_.data() + at, out.size());
      return true;
    };
    return page_at(read, cpu, address);
  }
  [[nodiscard]] std::byte* page(Gfn page) { return ram_.data() + page.value * kPageSize; }

  std::vector<std::byte> ram_ = std::vector<std::byte>(kNbPages * kPageSize);
  PageTableBuilder tables_{[this](Gfn gfn) { return page(gfn); }, Gfn{3}};
};

TEST_F(PageTables, APageIsFoundByFourLevels) {
  tables_.map(kAddress, Gfn{77});
  tables_.map(kAddress + kPageSize, Gfn{12});
  EXPECT_EQ(find(tables_.cpu(), kAddress), Gfn{77});
  EXPECT_EQ(find(tables_.cpu(), kAddress + 4095), Gfn{77});
  EXPECT_EQ(find(tables_.cpu(), kAddress + 4096), Gfn{12});
  EXPECT_EQ(find(tables_.cpu(), kAddress + 8192), std::nullopt);
  EXPECT_EQ(find(tables_.cpu(), 0), std::nullopt);
}

TEST_F(PageTables, APageIsFoundByFiveLevels) {
  PageTableBuilder five{[this](Gfn gfn) { return page(gfn); }, Gfn{20}, 5};
  five.map(0xff11'd001'40e0'9000, Gfn{5});
  EXPECT_EQ(find(five.cpu(), 0xff11'd001'40e0'9000), Gfn{5});
  EXPECT_EQ(find(five.cpu(), 0xff12'd001'40e0'9000), std::nullopt);
}

TEST_F(PageTables, APageIsFoundInLargeOnes) {
  tables_.map(kAddress, Gfn{0x200}, 2);
  EXPECT_EQ(find(tables_.cpu(), kAddress), Gfn{0x200 + 9});
  tables_.map(kAddress + 1024 * kMiB, Gfn{0x40000}, 3);
  EXPECT_EQ(find(tables_.cpu(), kAddress + 1024 * kMiB), Gfn{0x40000 + 7 * 512 + 9});
}

TEST_F(PageTables, TablesOutsideOfTheMemoryMapNothing) {
  CpuRecord cpu = tables_.cpu();
  cpu.cr3 = kNbPages * kPageSize;
  EXPECT_EQ(find(cpu, kAddress), std::nullopt);
  cpu.cr3 = ~std::uint64_t{0};
  EXPECT_EQ(find(cpu, kAddress), std::nullopt);
}

TEST_F(PageTables, AnyBytesMakeAnEnd) {
  std::mt19937_64 random{7};
  for (int round = 0; round < 200; ++round) {
    for (std::size_t at = 0; at < ram_.size(); at += 8) {
      std::uint64_t entry = random() | 1U;
      if (round % 2 == 0)
        entry = (entry & ~std::uint64_t{0x000f'ffff'ffff'f080}) |
                (entry & 0x1f'000);  // a table of these, small pages
      std::memcpy(ram_.data() + at, &entry, sizeof entry);
    }
    CpuRecord cpu = tables_.cpu();
    cpu.cr4 = random();
    const auto found = find(cpu, random());
    if (round % 2 == 0) {
      EXPECT_LT(found.value().value, kNbPages);
    }
  }
}

TEST(CpuRecord, Only64BitModeHasTheseTables) {
  EXPECT_TRUE(is_64_bit({.efer = 0x500}));
  EXPECT_FALSE(is_64_bit({.efer = 0x100}));  // LME alone: not yet
}

}  // namespace
}  // namespace snowfabric::xen::test
