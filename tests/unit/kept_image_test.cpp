// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/kept_image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <sys/mman.h>

#include "tests/unit/fake_guest.hpp"
#include "tests/unit/guest_peer.hpp"

namespace snowfabric {
namespace {

constexpr std::uint64_t kPages = 64;
constexpr ImageGeometry kGeometry{.image_id = 7, .nb_pages = kPages, .epoch = 1};

std::vector<std::byte> pages_of(std::byte fill, std::size_t nb_pages = 1) {
  return std::vector<std::byte>(nb_pages * kPageSize, fill);
}

struct KeptImageTest : ::testing::Test {
  void SetUp() override {
    auto made = KeptImage::create(kGeometry);
    if (!made && made.error().errnum == EPERM) GTEST_SKIP() << "userfaultfd(2) is not permitted";
    ASSERT_TRUE(made) << made.error().what;
    image = std::move(*made);
    ASSERT_TRUE(image->publish(dir / "image"));
  }

  testing::TempDir dir;
  std::unique_ptr<KeptImage> image;
};

TEST_F(KeptImageTest, WhatWasPutIsThereAndNothingElse) {
  EXPECT_EQ(image->put(Gfn{5}, pages_of(std::byte{7}, 2)), 0U);
  EXPECT_TRUE(image->has(Gfn{5}) && image->has(Gfn{6}));
  EXPECT_FALSE(image->knows(Gfn{4}) || image->knows(Gfn{7}));
  EXPECT_EQ(image->page(Gfn{6})[kPageSize - 1], std::byte{7});
  EXPECT_EQ(image->nb_kept(), 2U);
}

TEST_F(KeptImageTest, APageIsKeptAsItCameFirst) {
  image->put(Gfn{5}, pages_of(std::byte{7}));
  EXPECT_EQ(image->put(Gfn{4}, pages_of(std::byte{8}, 3)), 0U);
  EXPECT_EQ(image->page(Gfn{4})[0], std::byte{8});
  EXPECT_EQ(image->page(Gfn{5})[0], std::byte{7});
  EXPECT_EQ(image->page(Gfn{6})[0], std::byte{8});
  EXPECT_EQ(image->nb_kept(), 3U);
}

TEST_F(KeptImageTest, PagesBehindTheImageAreLeftOut) {
  EXPECT_EQ(image->put(Gfn{kPages - 1}, pages_of(std::byte{1}, 3)), 0U);
  image->put_zeros({Gfn{kPages - 2}, 100});
  EXPECT_EQ(image->nb_kept(), 1U);
  EXPECT_TRUE(image->is_zero(Gfn{kPages - 2}));
}

TEST_F(KeptImageTest, AZeroPageIsGivenWithTheZeroPagesAroundIt) {
  test::FakeGuest guest{kPages};
  image->put_zeros({Gfn{10}, 4});
  image->put_zeros({Gfn{20}, 1});
  EXPECT_EQ(image->give(Gfn{12}, guest), Install::kDone);
  EXPECT_THAT(guest.calls, ::testing::ElementsAre(test::FakeGuest::Call{10, 4}));
}

TEST_F(KeptImageTest, ACloneMapsTheFileAndSeesWhatComesLater) {
  const UniqueFd file{open((dir / "image").c_str(), O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(file) << std::strerror(errno);
  void* base =
      mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
  ASSERT_NE(base, MAP_FAILED);
  const auto* bytes = static_cast<std::byte*>(base);
  image->put(Gfn{3}, pages_of(std::byte{9}));
  EXPECT_EQ(bytes[3 * kPageSize], std::byte{9});
  munmap(base, kPages * kPageSize);
}

TEST_F(KeptImageTest, WhatAStrangerTouchedIsOverwrittenAndCounted) {
  const UniqueFd file{open((dir / "image").c_str(), O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(file) << std::strerror(errno);
  void* base =
      mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.get(), 0);
  ASSERT_NE(base, MAP_FAILED);
  auto* bytes = static_cast<std::byte*>(base);
  EXPECT_EQ(bytes[3 * kPageSize], std::byte{0});
  EXPECT_EQ(image->put(Gfn{2}, pages_of(std::byte{9}, 3)), 0U);
  EXPECT_EQ(image->nb_overwritten(), 1U);
  EXPECT_EQ(image->nb_kept(), 3U);
  for (const std::size_t page : {2U, 3U, 4U}) EXPECT_EQ(bytes[page * kPageSize], std::byte{9});
  munmap(base, kPages * kPageSize);
}

TEST_F(KeptImageTest, ACloneCannotChangeWhatTheOthersRead) {
  const UniqueFd file{open((dir / "image").c_str(), O_RDWR | O_CLOEXEC)};
  ASSERT_TRUE(file);
  EXPECT_EQ(mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0),
            MAP_FAILED);
  EXPECT_EQ(pwrite(file.get(), "x", 1, 0), -1);
  EXPECT_EQ(ftruncate(file.get(), 0), -1);
}

TEST_F(KeptImageTest, ItsLinkGoesWithItAndAnOldOneIsReplaced) {
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "image"));
  image.reset();
  EXPECT_FALSE(std::filesystem::is_symlink(dir / "image"));
  std::filesystem::create_symlink("/proc/1/fd/0", dir / "image");  // of a memtap that was killed
  EXPECT_TRUE(KeptImage::create(kGeometry).value()->publish(dir / "image"));
}

TEST_F(KeptImageTest, AFileOfSomebodyElseIsNotReplaced) {
  std::ofstream{dir / "other"} << "mine";
  const auto made = image->publish(dir / "other");
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().errnum, EEXIST);
  EXPECT_TRUE(std::filesystem::is_regular_file(dir / "other"));
}

}  // namespace
}  // namespace snowfabric
