// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/qemu_loader.hpp"

#include "tests/unit/qemu_clone_fixture.hpp"

namespace snowfabric::testing {
namespace {

constexpr std::string_view kStateOnly = R"([{"adapter": "qemu-precopy"}])";

struct QemuLoaderTest : QemuCloneTest {
  void SetUp() override { begin(kStateOnly); }

  /// What QEMU is sent when every page of the ROM is filled with its number.
  [[nodiscard]] std::vector<std::byte> stream() const {
    std::vector<std::byte> page;
    if (!seed_) return {};
    return qemu::precopy_stream(seed_->state, 0,
                                [&](Gfn gfn) {
                                  page = page_of(gfn.value);
                                  return std::span<const std::byte>{page};
                                })
        .value();
  }
};

TEST_F(QemuLoaderTest, ItAsksForTheRomsAndSendsThemWithTheDeviceState) {
  EXPECT_THAT(faults(), ::testing::ElementsAre(1020, 1021, 1022, 1023));
  EXPECT_TRUE(faults().empty());
  for (std::uint64_t gfn = kRamPages; gfn < kClonePages; ++gfn) {
    EXPECT_TRUE(silent());
    guest_->install(Gfn{gfn}, page_of(gfn));
  }
  const auto expected = stream();
  EXPECT_EQ(hear(expected.size()), expected);
}

TEST_F(QemuLoaderTest, PagesOfTheRamAreNotItsOwn) {
  EXPECT_FALSE(guest_->presence().absent(Gfn{0}));
  guest_->install(Gfn{0}, page_of(0));
  guest_->install_zeros({Gfn{kRamPages - 2}, 2});
  EXPECT_EQ(guest_->counters().skipped_pages.read(), 3U);
  EXPECT_TRUE(silent());
}

TEST_F(QemuLoaderTest, AnEndToTheStreamTellsQemuThatNothingFollows) {
  guest_->install_zeros({Gfn{kRamPages}, 4});
  hear(1 << 20);  // up to the end
  EXPECT_TRUE(hear(1).empty());
}

TEST_F(QemuLoaderTest, ItIsGoneWhenQemuHasReadAll) {
  guest_->install_zeros({Gfn{kRamPages}, 4});
  EXPECT_FALSE(guest_->gone());
  hear(1 << 20);
  qemu_ = UniqueFd{};
  faults();
  EXPECT_TRUE(guest_->gone());
}

}  // namespace
}  // namespace snowfabric::testing
