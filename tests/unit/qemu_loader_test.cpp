// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/qemu_loader.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "tests/unit/qemu_clone_fixture.hpp"

namespace snowfabric::testing {
namespace {

constexpr std::string_view kStateOnly = R"([{"adapter": "qemu-precopy"}])";

struct QemuLoaderTest : QemuCloneTest {
  /// The test is QEMU: its RAM comes by userfaultfd already.
  void SetUp() override {
    const UniqueFd probe{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    if (!probe) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
    max_guests_ = 1;  // full with the QEMU: how its state comes does not count
    listen();
    ram_ = std::make_unique<UffdMemory>(kRamPages);
    shim_ = connect_to(dir_ / "sock");
    const std::string region = fmt::format(R"([{{"base_host_virt_addr":{},"size":{},"offset":0}}])",
                                           ram_->base(), kRamPages * kPageSize);
    ASSERT_TRUE(send_with_fds(shim_.get(), region, {ram_->fd()}));
    for (int i = 0; i < 100 && guest_ == nullptr; ++i) poll_listener();
    ASSERT_NE(std::exchange(guest_, nullptr), nullptr);
    hand_over(kStateOnly);
  }
  void TearDown() override { listener_.reset(); }  // before the memory

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

  std::unique_ptr<UffdMemory> ram_;
  UniqueFd shim_;
};

TEST_F(QemuCloneTest, AQemuWhoseRamDoesNotComeGetsNoState) {
  listen();
  EXPECT_THAT(refusal_of(kStateOnly), ::testing::HasSubstr("libsf-clone.so"));
}

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

TEST_F(QemuLoaderTest, OnAFullHostNothingElseComesThough) {
  EXPECT_THAT(refusal_of(kHandover), ::testing::HasSubstr("1 of at most 1"));
  EXPECT_THAT(refusal_of(kStateOnly), ::testing::HasSubstr("being loaded already"));
}

TEST_F(QemuLoaderTest, PagesOfTheRamAreNotItsOwn) {
  EXPECT_FALSE(guest_->presence().absent(Gfn{0}));
  guest_->install(Gfn{0}, page_of(0));
  guest_->install_zeros({Gfn{kRamPages - 2}, 2});
  EXPECT_EQ(guest_->counters().skipped_pages.read(), 3U);
  EXPECT_TRUE(silent());
}

TEST_F(QemuLoaderTest, ItDoesNotLookAtThePagesOfTheRam) {
  const UniqueFd file{open(guest_->presence_path().c_str(), O_WRONLY | O_CLOEXEC)};
  const std::array<std::uint64_t, kRamPages / Presence::kPagesPerWord> absent{};
  const auto nb_bytes = static_cast<ssize_t>(sizeof absent);
  ASSERT_EQ(pwrite(file.get(), absent.data(), sizeof absent, sizeof(PresenceHeader)), nb_bytes);
  ASSERT_TRUE(guest_->presence().absent(Gfn{0}));
  EXPECT_THAT(faults(), ::testing::ElementsAre(1020, 1021, 1022, 1023));
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
