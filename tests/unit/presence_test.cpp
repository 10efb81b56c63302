// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/presence.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <thread>
#include <vector>

#include <sys/stat.h>

#include "memtap-dpdk/presence_file.hpp"
#include "tests/unit/guest_peer.hpp"

namespace snowfabric {
namespace {

using testing::TempDir;

constexpr ImageGeometry kImage{.image_id = 0x1234, .nb_pages = 1000, .epoch = 7};

class PresenceTest : public ::testing::Test {
 protected:
  std::array<Presence::Word, 4> words_{};
  Presence presence_{words_, 100};
};

TEST_F(PresenceTest, APageGoesFromAbsentByAClaimToPresentAndNoOtherIsTouched) {
  EXPECT_TRUE(presence_.absent(Gfn{33}));
  ASSERT_TRUE(presence_.claim(Gfn{33}, PageState::kClaimedByMemtap));
  EXPECT_EQ(presence_.state(Gfn{33}), PageState::kClaimedByMemtap);
  EXPECT_FALSE(presence_.claim(Gfn{33}, PageState::kClaimedByGuest));
  EXPECT_TRUE(presence_.mark_present(Gfn{33}));
  EXPECT_EQ(presence_.state(Gfn{33}), PageState::kPresent);
  EXPECT_FALSE(presence_.claim(Gfn{33}, PageState::kClaimedByMemtap));
  EXPECT_EQ(presence_.count(PageState::kAbsent), 99U);
}

TEST_F(PresenceTest, AFailedInstallMakesThePageAbsentAgain) {
  ASSERT_TRUE(presence_.claim(Gfn{0}, PageState::kClaimedByMemtap));
  EXPECT_TRUE(presence_.unclaim(Gfn{0}));
  EXPECT_TRUE(presence_.absent(Gfn{0}));
}

TEST_F(PresenceTest, APageDiscardedDuringAnInstallStaysTheGuests) {
  for (const Gfn page : {Gfn{1}, Gfn{2}}) {
    ASSERT_TRUE(presence_.claim(page, PageState::kClaimedByMemtap));
    presence_.discard(page);
  }
  EXPECT_FALSE(presence_.mark_present(Gfn{1}));
  EXPECT_FALSE(presence_.unclaim(Gfn{2}));
  EXPECT_EQ(presence_.state(Gfn{1}), PageState::kClaimedByGuest);
  EXPECT_EQ(presence_.state(Gfn{2}), PageState::kClaimedByGuest);
}

TEST_F(PresenceTest, DiscardingARangeTakesExactlyItsPagesWhateverTheirState) {
  ASSERT_TRUE(presence_.claim(Gfn{40}, PageState::kClaimedByMemtap));
  presence_.mark_present(Gfn{40});
  presence_.discard(PageRange{Gfn{30}, 67});  // 2 of word 0, words 1 and 2 whole, 1 of word 3
  EXPECT_EQ(presence_.count(PageState::kClaimedByGuest), 67U);
  EXPECT_TRUE(presence_.absent(Gfn{29}));
  EXPECT_EQ(presence_.state(Gfn{30}), PageState::kClaimedByGuest);
  EXPECT_EQ(presence_.state(Gfn{96}), PageState::kClaimedByGuest);
  EXPECT_TRUE(presence_.absent(Gfn{97}));
}

TEST_F(PresenceTest, OfManyThreadsExactlyOneClaimsEachPage) {
  std::atomic<unsigned> claims{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const auto who = t % 2 == 0 ? PageState::kClaimedByMemtap : PageState::kClaimedByGuest;
      for (std::uint64_t i = 0; i < 100; ++i)
        if (presence_.claim(Gfn{i}, who)) claims.fetch_add(1);
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(claims.load(), 100U);
  EXPECT_EQ(presence_.count(PageState::kAbsent), 0U);
}

TEST_F(PresenceTest, WhoSeesAPagePresentSeesItsBytes) {
  std::array<int, 100> bytes{};
  std::thread installer{[&] {
    for (std::uint64_t i = 0; i < 100; ++i) {
      if (!presence_.claim(Gfn{i}, PageState::kClaimedByMemtap)) continue;
      bytes[i] = 1;  // TSan fails here if mark_present is no release store
      presence_.mark_present(Gfn{i});
    }
  }};
  int seen = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    while (presence_.state(Gfn{i}) != PageState::kPresent) std::this_thread::yield();
    seen += bytes[i];
  }
  installer.join();
  EXPECT_EQ(seen, 100);
}

TEST(PresenceFile, ANewFileIsPrivateAbsentThroughoutAndUnlinkedAtTheEnd) {
  const TempDir dir;
  const std::string path = dir / "p";
  {
    const auto file = PresenceFile::create(path, kImage);
    ASSERT_TRUE(file.has_value()) << file.error().what;
    EXPECT_EQ(file->view().count(PageState::kAbsent), kImage.nb_pages);
    struct stat st{};
    ASSERT_EQ(stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777U, 0600U);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(PresenceFile, AFileInUseIsNeitherReplacedNorRemoved) {
  const TempDir dir;
  const auto owner = PresenceFile::create(dir / "p", kImage);
  ASSERT_TRUE(owner.has_value()) << owner.error().what;
  EXPECT_EQ(PresenceFile::create(dir / "p", kImage).error().errnum, EBUSY);
  EXPECT_TRUE(std::filesystem::exists(dir / "p"));
}

TEST(PresenceFile, AFileWithoutOwnerIsReplacedByAnEmptyOne) {
  const TempDir dir;
  std::ofstream{dir / "p"} << "left by a crash";
  const auto file = PresenceFile::create(dir / "p", kImage);
  ASSERT_TRUE(file.has_value()) << file.error().what;
  EXPECT_EQ(file->view().count(PageState::kAbsent), kImage.nb_pages);
}

TEST(PresenceFile, FilesOfDeadMemtapsAreRemovedThoughTheyAreWhole) {
  const TempDir dir;
  const auto used = PresenceFile::create(dir / "clone-0.presence", kImage);
  ASSERT_TRUE(used.has_value()) << used.error().what;
  std::filesystem::copy_file(dir / "clone-0.presence", dir / "clone-1.presence");
  std::ofstream{dir / "notes"} << "somebody else's";
  PresenceFile::clean(dir / "");
  EXPECT_TRUE(std::filesystem::exists(dir / "clone-0.presence"));
  EXPECT_FALSE(std::filesystem::exists(dir / "clone-1.presence"));
  EXPECT_TRUE(std::filesystem::exists(dir / "notes"));
}

TEST(PresenceFile, WhatIsNoRegularFileIsLeftAloneAndNotWaitedFor) {
  const TempDir dir;
  const std::string fifo = dir / "a.presence";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  PresenceFile::clean(dir / "");
  EXPECT_EQ(PresenceFile::create(fifo, kImage).error().errnum, EINVAL);
  EXPECT_TRUE(std::filesystem::is_fifo(fifo));
  PresenceFile::clean(dir / "none");
}

TEST(PresenceFile, AGeometryWithoutPagesOrBeyondReasonIsRefused) {
  const TempDir dir;
  EXPECT_EQ(PresenceFile::create(dir / "p", {1, 0, 1}).error().errnum, EINVAL);
  EXPECT_EQ(PresenceFile::create(dir / "p", {1, kMaxPresencePages + 1, 1}).error().errnum, EINVAL);
}

}  // namespace
}  // namespace snowfabric
