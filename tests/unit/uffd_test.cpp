// SPDX-License-Identifier: BSD-3-Clause
#include <fcntl.h>

#include <map>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "memtap-dpdk/uffd_ioctl.hpp"
#include "tests/unit/uffd_fixture.hpp"

namespace snowfabric {
namespace {

using namespace testing;
using ::testing::HasSubstr;

TEST_F(UffdTest, AGuestReadsAndWritesEveryPageAsTheImageHasIt) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  bool right = true;
  run_vcpus(*guest, {[&] {
    for (std::size_t i = 0; i < kPages; ++i) {
      if (i % 2 == 0) *memory.page(i) = static_cast<std::byte>(i + 1);  // a write fault
      right = right && holds(memory, i, i);
    }
  }},
            [&](Gfn page) { install_one(*guest, page); });
  EXPECT_TRUE(right);
  EXPECT_EQ(guest->counters().faults.read(), kPages);
  EXPECT_EQ(guest->counters().installed_pages.read(), kPages);
  EXPECT_EQ(guest->presence().count(PageState::kPresent), kPages);
  EXPECT_TRUE(guest->trouble().empty()) << guest->trouble();
}

TEST_F(UffdTest, SeveralThreadsOnOnePageMakeOneReportAndAllWake) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  std::map<std::uint64_t, int> reports;
  const auto touch = [&] { EXPECT_TRUE(holds(memory, 5, 5)); };
  run_vcpus(*guest, {touch, touch, touch, touch}, [&](Gfn page) {
    ++reports[page.value];
    // Answered only when all four wait: the last three were seen and not reported.
    std::array<Gfn, 8> more;
    while (guest->counters().faults_repeated.read() < 3) {
      ASSERT_TRUE(readable(guest->uffd()));
      ASSERT_EQ(guest->poll_faults(more), 0U);
    }
    install_one(*guest, page);
  });
  EXPECT_EQ(reports, (std::map<std::uint64_t, int>{{5, 1}}));
}

TEST_F(UffdTest, ARunIsInstalledInOneCallAroundPagesThatAreNotOurs) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  ASSERT_EQ(guest->install(Gfn{10}, bytes_of(10, 1)), Install::kDone);
  ASSERT_EQ(guest->install(Gfn{8}, bytes_of(8, 6)), Install::kDone);
  for (std::size_t i = 8; i < 14; ++i) EXPECT_TRUE(holds(memory, i, i)) << i;
  EXPECT_EQ(guest->counters().install_calls.read(), 3U) << "10; then 8-9 and 11-13";
  EXPECT_EQ(guest->counters().skipped_pages.read(), 1U);
  EXPECT_EQ(guest->install(Gfn{8}, bytes_of(8, 6)), Install::kDone) << "repeating is harmless";
  EXPECT_EQ(guest->counters().installed_pages.read(), 6U);
}

TEST_F(UffdTest, APageTheKernelHasAlreadyIsKeptAndTheRunGoesOn) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  const auto other = bytes_of(99, 1);
  ASSERT_EQ(uffd::copy(memory.fd(), memory.base() + 3 * kPageSize, other.data(), 1).nb_pages, 1U);
  ASSERT_EQ(guest->install(Gfn{0}, bytes_of(0, 8)), Install::kDone);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_TRUE(holds(memory, i, i == 3 ? 99 : i)) << i;
  EXPECT_EQ(guest->counters().eexist.read(), 1U);
  EXPECT_EQ(guest->presence().count(PageState::kPresent), 8U);
}

TEST_F(UffdTest, ZeroPagesOfTheImageAreMappedWithoutBytes) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  EXPECT_EQ(guest->install_zeros({Gfn{0}, kPages}), Install::kDone);
  EXPECT_TRUE(zero(memory, 0) && zero(memory, kPages - 1));
  EXPECT_EQ(guest->counters().zero_pages.read(), kPages);
  EXPECT_EQ(guest->counters().install_calls.read(), 1U);
}

TEST_F(UffdTest, AnImageInTwoRegionsIsInstalledAcrossTheirBorderAndUnmappedPagesAreSkipped) {
  const UffdMemory memory{kPages};
  // Image pages 0-7 lie high in memory, 8-15 low, and 16-63 nowhere.
  UffdGuest* guest = attach(memory, "[" + region_json(memory.base() + 32 * kPageSize, 8, 0) + "," +
                                        region_json(memory.base(), 8, 8) + "]");
  ASSERT_NE(guest, nullptr);
  EXPECT_EQ(guest->install(Gfn{4}, bytes_of(4, 20)), Install::kDone);
  for (std::size_t i = 4; i < 8; ++i) EXPECT_TRUE(holds(memory, 32 + i, i)) << i;
  for (std::size_t i = 8; i < 16; ++i) EXPECT_TRUE(holds(memory, i - 8, i)) << i;
  EXPECT_EQ(guest->counters().install_calls.read(), 2U);
  EXPECT_EQ(guest->presence().count(PageState::kClaimedByGuest), 48U);
  std::vector<std::uint64_t> faults;
  run_vcpus(*guest, {[&] { EXPECT_TRUE(holds(memory, 33, 1)); }}, [&](Gfn page) {
    faults.push_back(page.value);
    install_one(*guest, page);
  });
  EXPECT_EQ(faults, std::vector<std::uint64_t>{1});
}

TEST_F(UffdTest, APageTheGuestGaveBackReadsAsZerosAndIsNotFetched) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  ASSERT_EQ(guest->install(Gfn{0}, bytes_of(0, 4)), Install::kDone);
  run_vcpus(*guest, {[&] {
    EXPECT_EQ(madvise(memory.page(2), 4 * kPageSize, MADV_DONTNEED), 0);
    EXPECT_TRUE(zero(memory, 2) && zero(memory, 5));
    *memory.page(4) = std::byte{1};
  }},
            [](Gfn page) { ADD_FAILURE() << "page " << page.value << " was asked for"; });
  EXPECT_EQ(guest->counters().removed_pages.read(), 4U);
  EXPECT_EQ(guest->presence().count(PageState::kClaimedByGuest), 4U);
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 8)), Install::kDone) << "a late answer";
  EXPECT_TRUE(zero(memory, 2) && zero(memory, 5));
  EXPECT_TRUE(holds(memory, 1, 1) && holds(memory, 6, 6));
}

TEST_F(UffdTest, WhoWaitsForAPageThatIsThenGivenBackGetsZeros) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  std::thread balloon;
  run_vcpus(*guest, {[&] { EXPECT_TRUE(zero(memory, 7)); }}, [&](Gfn page) {
    EXPECT_EQ(page, Gfn{7});  // reported; before the answer comes the page is given back
    balloon = std::thread{[&] { EXPECT_EQ(madvise(memory.page(7), kPageSize, MADV_DONTNEED), 0); }};
  });
  balloon.join();
  EXPECT_EQ(guest->presence().state(Gfn{7}), PageState::kClaimedByGuest);
}

TEST_F(UffdTest, AnInstallIsPutOffWhileARemoveIsUnderWay) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  std::thread balloon{[&] { madvise(memory.page(60), kPageSize, MADV_DONTNEED); }};
  ASSERT_TRUE(readable(guest->uffd()));  // the event is queued, the thread waits for us to read it
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 2)), Install::kAgain);
  EXPECT_EQ(guest->install_zeros({Gfn{4}, 2}), Install::kAgain);
  EXPECT_EQ(guest->fail(Gfn{6}), FailMeans::kAgain);
  EXPECT_EQ(guest->presence().count(PageState::kAbsent), kPages) << "nothing stays claimed";
  std::array<Gfn, 4> none;
  EXPECT_EQ(guest->poll_faults(none), 0U);
  balloon.join();
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 2)), Install::kDone);
  EXPECT_TRUE(holds(memory, 1, 1));
  EXPECT_EQ(guest->counters().eagain.read(), 3U);
}

TEST_F(UffdTest, PagesTheGuestUnmappedAreSkippedAndTheRestInstalled) {
  const UffdMemory memory{kPages, 0};  // without EVENT_UNMAP: memtap finds out by ENOENT
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  ASSERT_EQ(munmap(memory.page(2), 2 * kPageSize), 0);
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 8)), Install::kDone);
  EXPECT_EQ(guest->counters().range_gone_pages.read(), 2U);
  for (const std::size_t i : {0UL, 1UL, 4UL, 7UL}) EXPECT_TRUE(holds(memory, i, i)) << i;
}

TEST_F(UffdTest, APageGivenBackWithoutAnEventReadsAsZerosInsteadOfFaultingForEver) {
  const UffdMemory memory{kPages, 0};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  ASSERT_EQ(guest->install(Gfn{0}, bytes_of(0, 1)), Install::kDone);
  ASSERT_EQ(madvise(memory.page(0), kPageSize, MADV_DONTNEED), 0);
  run_vcpus(*guest, {[&] { EXPECT_TRUE(zero(memory, 0)); }}, [](Gfn) { ADD_FAILURE(); });
}

TEST_F(UffdTest, AFaultOutsideTheRegionsIsTrouble) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory, "[" + region_json(memory.base(), 8, 0) + "]");
  ASSERT_NE(guest, nullptr);
  std::thread vcpu{[&] { EXPECT_TRUE(zero(memory, 20)); }};
  ASSERT_TRUE(readable(guest->uffd()));
  std::array<Gfn, 4> out;
  EXPECT_EQ(guest->poll_faults(out), 0U);
  EXPECT_THAT(std::string{guest->trouble()}, HasSubstr("outside the regions"));
  EXPECT_EQ(guest->counters().faults_outside.read(), 1U);
  EXPECT_EQ(uffd::zero(memory.fd(), memory.base() + 20 * kPageSize, 1).nb_pages, 1U);
  vcpu.join();
}

TEST_F(UffdTest, AGuestThatMakesTheUserfaultfdBlockingDoesNotStopMemtap) {
  const UffdMemory memory{kPages};
  UffdGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  std::array<uffd_msg, 1> message;
  if (uffd::read(memory.fd(), message) < 0 && errno != EAGAIN) FAIL() << std::strerror(errno);
  const iovec part{message.data(), sizeof message};
  if (preadv2(memory.fd(), &part, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP)
    GTEST_SKIP() << "this kernel (before Linux 6.10) has no RWF_NOWAIT for userfaultfd";
  ASSERT_EQ(fcntl(memory.fd(), F_SETFL, 0), 0);
  std::array<Gfn, 1> faults;
  EXPECT_EQ(guest->poll_faults(faults), 0U);
}

}  // namespace
}  // namespace snowfabric
