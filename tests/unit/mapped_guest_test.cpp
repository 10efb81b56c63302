// SPDX-License-Identifier: BSD-3-Clause
// Guests that map memtap's image instead of having pages of their own.
#include <fcntl.h>

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "tests/unit/uffd_fixture.hpp"

namespace snowfabric::testing {
namespace {

struct MappedGuest : UffdTest {
  void SetUp() override {
    const UniqueFd probe{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    if (!probe) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
    auto kept = KeptImage::create(kImage);
    ASSERT_TRUE(kept) << kept.error().what;
    kept_ = std::move(*kept);
    memory_ = std::make_unique<UffdMemory>(kPages, 0, kept_->file());
    auto listener = GuestListener::create({.socket_path = dir_ / "sock",
                                           .presence_dir = dir_ / "presence",
                                           .image = kImage,
                                           .kept = kept_.get()});
    ASSERT_TRUE(listener) << listener.error().what;
    listener_ = std::move(*listener);
  }

  UffdGuest* attach_mapping(std::uint64_t inode) {
    return attach(*memory_, mapping_json(inode, image_name(kImage)));
  }
  [[nodiscard]] std::string mapping_json(std::uint64_t inode, std::string_view image) const {
    std::string region = region_json(memory_->base(), kPages, 0);
    region.back() = ',';
    return fmt::format(R"([{}"file_inode":{},"image":"{}"}}])", region, inode, image);
  }
  UffdGuest* attach_mapping() { return attach_mapping(kept_->inode()); }

  void page_comes(ProcessGuest& guest, Gfn page) {
    kept_->put(page, bytes_of(page.value, 1));  // as Host does it
    install_one(guest, page);
  }
  /// Whether the page is the file's, not a copy. Source: admin-guide/mm/pagemap.rst of Linux.
  [[nodiscard]] bool is_shared(std::size_t page) const {
    const UniqueFd file{open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)};
    std::uint64_t entry = 0;
    const auto at = static_cast<off_t>((memory_->base() / kPageSize + page) * sizeof entry);
    EXPECT_EQ(pread(file.get(), &entry, sizeof entry, at), ssize_t{sizeof entry});
    return (entry >> 61U & 1U) != 0;
  }

  std::unique_ptr<KeptImage> kept_;
  std::unique_ptr<UffdMemory> memory_;
};

TEST_F(MappedGuest, APageInTheFileIsSharedNotCopied) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  run_vcpus(*guest, {[&] { EXPECT_TRUE(holds(*memory_, 3, 3)); }},
            [&](Gfn page) { page_comes(*guest, page); });
  EXPECT_TRUE(is_shared(3));
}

TEST_F(MappedGuest, WhatTheGuestWritesStaysItsOwn) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  run_vcpus(*guest, {[&] { *memory_->page(3) = std::byte{0x77}; }},
            [&](Gfn page) { page_comes(*guest, page); });
  EXPECT_FALSE(is_shared(3));
  EXPECT_EQ(*memory_->page(3), std::byte{0x77});
  EXPECT_EQ(kept_->page(Gfn{3})[0], bytes_of(3, 1)[0]);
}

TEST_F(MappedGuest, APageThatComesBeforeItsFaultIsReadIsNotAnsweredWithZeros) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  std::atomic<bool> done{false};
  std::thread vcpu{[&] {
    EXPECT_TRUE(holds(*memory_, 3, 3));
    done = true;
  }};
  EXPECT_TRUE(readable(memory_->fd()));
  page_comes(*guest, Gfn{3});
  while (!done) {
    std::array<Gfn, 8> faults;
    EXPECT_EQ(guest->poll_faults(faults), 0U);
  }
  vcpu.join();
  EXPECT_TRUE(is_shared(3));
}

TEST_F(MappedGuest, ZeroPagesCostTheFileNothing) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  run_vcpus(*guest, {[&] { EXPECT_TRUE(zero(*memory_, 5)); }},
            [&](Gfn page) { EXPECT_EQ(guest->install_zeros({page, 2}), Install::kDone); });
  struct stat st{};
  ASSERT_EQ(fstat(kept_->file(), &st), 0);
  EXPECT_EQ(st.st_blocks, 0);
}

TEST_F(MappedGuest, OneThatHasAllIsToldSoAndItsMemoryIsFreeForAnotherUserfaultfd) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  for (std::uint64_t gfn = 0; gfn < kPages; ++gfn) page_comes(*guest, Gfn{gfn});
  const UniqueFd other{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
  uffdio_api api{UFFD_API, 0, 0};
  ASSERT_EQ(ioctl(other.get(), UFFDIO_API, &api), 0);
  uffdio_register all{{memory_->base(), kPages * kPageSize}, UFFDIO_REGISTER_MODE_MISSING, 0};
  EXPECT_NE(ioctl(other.get(), UFFDIO_REGISTER, &all), 0);
  guest->release();
  EXPECT_EQ(ioctl(other.get(), UFFDIO_REGISTER, &all), 0);
  EXPECT_TRUE(guest->gone());
  char byte = 0;
  EXPECT_EQ(recv(peer_.get(), &byte, 1, MSG_DONTWAIT), 1);
  EXPECT_TRUE(holds(*memory_, 3, 3));
  EXPECT_EQ(ioctl(other.get(), UFFDIO_UNREGISTER, &all.range), 0);
}

TEST_F(MappedGuest, APageThatCouldNotBeKeptIsCopied) {
  UffdGuest* guest = attach_mapping();
  ASSERT_NE(guest, nullptr);
  run_vcpus(*guest, {[&] { EXPECT_TRUE(holds(*memory_, 3, 3)); }},
            [&](Gfn page) { install_one(*guest, page); });
  EXPECT_FALSE(is_shared(3));
}

TEST_F(MappedGuest, AGuestThatMapsTheFileOfADeadMemtapGetsCopies) {
  UffdGuest* guest = attach_mapping(kept_->inode() + 1);
  ASSERT_NE(guest, nullptr);
  EXPECT_TRUE(guest->survives_memtap());
  run_vcpus(*guest, {[&] { EXPECT_TRUE(holds(*memory_, 3, 3)); }},
            [&](Gfn page) { install_one(*guest, page); });
  EXPECT_FALSE(is_shared(3));
}

TEST_F(MappedGuest, AGuestOfAnotherImageIsRefused) {
  for (const std::string_view other : {"0000000000000001-2", "0000000000000002-1", ""}) {
    peer_ = connect_to(dir_ / "sock");
    ASSERT_TRUE(send_with_fds(peer_.get(), mapping_json(kept_->inode(), other), {memory_->fd()}));
    const auto events = poll_until_rejected();
    ASSERT_EQ(events.rejected.size(), 1U);
    EXPECT_THAT(events.rejected[0].what, HasSubstr("this memtap serves 0000000000000001-1"));
  }
}

TEST_F(MappedGuest, WhoWaitedForADeadMemtapFaultsAgain) {
  std::atomic<bool> done{false};
  std::thread vcpu{[&] {
    EXPECT_TRUE(holds(*memory_, 3, 3));
    done = true;
  }};
  EXPECT_TRUE(readable(memory_->fd()));
  uffd_msg lost{};  // the dead memtap had read it
  EXPECT_EQ(read(memory_->fd(), &lost, sizeof lost), ssize_t{sizeof lost});
  UffdGuest* guest = attach_mapping();
  while (guest != nullptr && !done) {
    std::array<Gfn, 8> faults;
    if (guest->poll_faults(faults) != 0) page_comes(*guest, faults[0]);
  }
  vcpu.join();
}

TEST_F(MappedGuest, AGuestThatMapsNothingDiesWithMemtap) {
  UffdGuest* guest = attach(*memory_);
  ASSERT_NE(guest, nullptr);
  EXPECT_FALSE(guest->survives_memtap());
}

}  // namespace
}  // namespace snowfabric::testing
