// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/cow_memory.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "fabric/crc32c.hpp"
#include "memserver-dpdk/image.hpp"
#include "tests/unit/guest_peer.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t kPages = 256;

/// A process with a shim: shared memory under write protection, and one answer on a socket.
class FakeParent {
 public:
  explicit FakeParent(std::string path) : path_{std::move(path)} {
    file_ = UniqueFd{memfd_create("parent", MFD_CLOEXEC)};
    EXPECT_EQ(ftruncate(file_.get(), kPages * kPageSize), 0);
    void* p = mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    ram_ = static_cast<std::byte*>(p);
  }
  FakeParent(const FakeParent&) = delete;
  FakeParent& operator=(const FakeParent&) = delete;
  ~FakeParent() { munmap(ram_, kPages * kPageSize); }

  /// Answers the next that connects: with `text`, or with its memory as the shim does.
  std::thread answer(std::string text = {}) {
    listener_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    ::unlink(path_.c_str());  // of the one before
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    return std::thread{[this, text] {
      const UniqueFd peer{accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      if (!text.empty()) {
        EXPECT_TRUE(send_with_fds(peer.get(), text, {}));
        return;
      }
      const UniqueFd uffd{registered()};
      EXPECT_TRUE(send_with_fds(peer.get(), json(), {uffd.get(), file_.get()}));
    }};
  }
  void write(std::uint64_t page, std::uint8_t value) const {
    std::memset(ram_ + page * kPageSize, value, kPageSize);
  }
  [[nodiscard]] std::uint64_t allocated_pages() const {
    struct stat st{};
    fstat(file_.get(), &st);
    return static_cast<std::uint64_t>(st.st_blocks) * 512 / kPageSize;
  }

 private:
  [[nodiscard]] UniqueFd registered() const {
    UniqueFd uffd{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    uffdio_api api{UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0};
    EXPECT_EQ(ioctl(uffd.get(), UFFDIO_API, &api), 0) << std::strerror(errno);
    uffdio_register reg{
        {reinterpret_cast<std::uintptr_t>(ram_), kPages * kPageSize}, UFFDIO_REGISTER_MODE_WP, 0};
    EXPECT_EQ(ioctl(uffd.get(), UFFDIO_REGISTER, &reg), 0) << std::strerror(errno);
    return uffd;
  }
  [[nodiscard]] std::string json() const {
    return R"([{"base_host_virt_addr":)" + std::to_string(reinterpret_cast<std::uintptr_t>(ram_)) +
           R"(,"size":)" + std::to_string(kPages * kPageSize) +
           R"(,"offset":0,"page_size":4096,"file_offset":0}])";
  }

  std::string path_;
  UniqueFd file_, listener_;
  std::byte* ram_ = nullptr;
};

struct CowMemoryTest : ::testing::Test {
  void attach() {
    std::thread shim = parent_.answer();
    auto cow = CowMemory::attach(dir_ / "shim");
    shim.join();
    ASSERT_TRUE(cow) << cow.error().what;
    cow_ = std::move(*cow);
    ASSERT_EQ(cow_->nb_pages(), kPages);
  }
  void arm() { ASSERT_TRUE(cow_->arm()); }
  /// How often a reader found a page not to be 1, while another thread did `action`.
  std::uint64_t nb_wrong_during(const std::function<void()>& action) const {
    std::atomic<bool> stop{false};
    std::thread actor{[&] {
      action();
      stop = true;
    }};
    std::uint64_t nb_wrong = 0;
    while (!stop)
      for (std::uint64_t page = 0; page < kPages; ++page) nb_wrong += is(page, 1) ? 0 : 1;
    actor.join();
    return nb_wrong;
  }
  void write_all(std::uint8_t value) const {
    for (std::uint64_t page = 0; page < kPages; ++page) parent_.write(page, value);
  }
  [[nodiscard]] bool is(std::uint64_t page, std::uint8_t value) const {
    std::array<std::byte, kPageSize> bytes;
    cow_->pages().copy(Gfn{page}, 0, bytes);
    return std::ranges::all_of(bytes, [value](std::byte b) { return b == std::byte{value}; });
  }

  TempDir dir_;
  FakeParent parent_{dir_ / "shim"};
  std::unique_ptr<CowMemory> cow_;
};

TEST_F(CowMemoryTest, APageIsAsItWasAtTheInstantWhateverTheParentWritesLater) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  EXPECT_EQ(cow_->freeze().value(), 0U);
  for (std::uint64_t page = 0; page < 4; ++page) parent_.write(page, 2);
  parent_.write(0, 3);
  for (std::uint64_t page = 0; page < 8; ++page) EXPECT_TRUE(is(page, 1)) << page;
  EXPECT_EQ(cow_->pages().nb_copies(), 4U);
}

TEST_F(CowMemoryTest, WhatIsWrittenBetweenArmingAndTheInstantBelongsToTheImage) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  for (const std::uint64_t page : {2UL, 3UL, 7UL}) parent_.write(page, 2);
  EXPECT_EQ(cow_->freeze().value(), 3U);
  for (const std::uint64_t page : {2UL, 3UL, 7UL}) parent_.write(page, 3);
  EXPECT_TRUE(is(1, 1));
  for (const std::uint64_t page : {2UL, 3UL, 7UL}) EXPECT_TRUE(is(page, 2)) << page;
}

TEST_F(CowMemoryTest, ItIsKnownWhichPagesWereWrittenBetweenArmingAndTheInstant) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  for (const std::uint64_t page : {2UL, 100UL}) parent_.write(page, 2);  // 100: its first touch
  EXPECT_EQ(cow_->freeze().value(), 2U);
  parent_.write(5, 3);
  for (std::uint64_t page = 0; page < kPages; ++page)
    EXPECT_EQ(cow_->written_before_freeze(Gfn{page}), page == 2 || page == 100) << page;
}

TEST_F(CowMemoryTest, AnAvoidedPageOfTheImageIsZeroWhateverIsInTheParent) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  ASSERT_TRUE(cow_->freeze());
  const UniqueFd rest{memfd_create("rest", MFD_CLOEXEC)};
  ASSERT_EQ(ftruncate(rest.get(), kPages * kPageSize), 0);
  const AsideMemory* const pages = &cow_->pages();
  const auto image = Image::open("/proc/self/fd/" + std::to_string(rest.get()),
                                 {.live = {std::shared_ptr<CowMemory>{std::move(cow_)}, pages},
                                  .zeros = {{Gfn{2}, 3}, {Gfn{70}, 1}}});
  ASSERT_TRUE(image) << image.error().what;
  EXPECT_EQ(image->nb_zero_pages(), kPages - 5);
  std::array<std::byte, kPageSize> bytes;
  for (std::uint64_t page = 0; page < 8; ++page) {
    const bool avoided = page >= 2 && page < 5;
    image->copy(Gfn{page}, 0, bytes);
    EXPECT_EQ(image->is_zero(Gfn{page}), avoided) << page;
    EXPECT_EQ(image->crc(Gfn{page}), crc32c(bytes)) << page;
    EXPECT_EQ(bytes[0], std::byte{avoided ? std::uint8_t{0} : std::uint8_t{1}}) << page;
  }
}

TEST_F(CowMemoryTest, PagesLeftOutAreWrittenWithoutACopy) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  ASSERT_TRUE(cow_->freeze());
  parent_.write(4, 2);  // before it is known that nobody needs it
  cow_->leave_out(std::array{PageRange{Gfn{2}, 3}, PageRange{Gfn{70}, 1}});
  for (std::uint64_t page = 0; page < 80; ++page) parent_.write(page, 3);
  EXPECT_EQ(cow_->pages().nb_copies(), 80U - 3);
  for (std::uint64_t page = 0; page < 8; ++page)
    EXPECT_TRUE(is(page, page == 2 || page == 3 ? 0 : 1)) << page;
}

TEST_F(CowMemoryTest, PartsOfAPageCanBeCopied) {
  parent_.write(5, 9);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  std::array<std::byte, 16> part{};
  cow_->pages().copy(Gfn{5}, kPageSize - part.size(), part);
  EXPECT_EQ(part.back(), std::byte{9});
}

TEST_F(CowMemoryTest, PagesNobodyTouchedCostNothingAndStayZeroInTheImage) {
  parent_.write(0, 1);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  EXPECT_THAT(cow_->untouched(), ElementsAre(PageRange{Gfn{1}, kPages - 1}));
  EXPECT_EQ(parent_.allocated_pages(), 1U);
  parent_.write(100, 4);  // the first touch, after the instant
  EXPECT_THAT(cow_->untouched(),
              ElementsAre(PageRange{Gfn{1}, 99}, PageRange{Gfn{101}, kPages - 101}));
  EXPECT_TRUE(is(100, 0));
}

TEST_F(CowMemoryTest, AReaderNeverSeesAWriteThoughTheParentWritesAtThatMoment) {
  write_all(1);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  EXPECT_EQ(nb_wrong_during([&] { write_all(2); }), 0U);
  EXPECT_EQ(cow_->pages().nb_copies(), kPages);
}

TEST_F(CowMemoryTest, DetachedItKeepsAllPagesAndTheParentCanBeFrozenAgain) {
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 1);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  parent_.write(0, 2);
  cow_->detach([](Gfn page) { return page.value >= 8; });
  parent_.write(1, 2);
  parent_.write(100, 2);  // would block if nobody set it aside
  std::unique_ptr<CowMemory> first = std::move(cow_);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  for (std::uint64_t page = 0; page < 8; ++page) parent_.write(page, 3);
  for (std::uint64_t page = 0; page < 8; ++page) EXPECT_TRUE(is(page, page < 2 ? 2 : 1)) << page;
  std::swap(cow_, first);
  for (std::uint64_t page = 0; page < 8; ++page) EXPECT_TRUE(is(page, 1)) << page;
  EXPECT_EQ(cow_->pages().nb_copies(), 8U);
}

TEST_F(CowMemoryTest, AReaderSeesTheInstantThoughThePagesAreSetAsideAtThatMoment) {
  write_all(1);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  const auto detach_and_write = [&] {
    cow_->detach([](Gfn) { return false; });
    write_all(2);
  };
  EXPECT_EQ(nb_wrong_during(detach_and_write), 0U);
}

TEST_F(CowMemoryTest, WhenItGoesTheParentWritesFreely) {
  parent_.write(0, 1);
  attach();
  arm();
  EXPECT_TRUE(cow_->freeze());
  cow_ = nullptr;
  parent_.write(0, 2);  // would block for ever
}

TEST_F(CowMemoryTest, AShimThatRefusesIsQuotedAndOnlyMemoryThatIsHeldIsBusy) {
  for (const auto& [answer, errnum] : {std::pair{R"({"error": "held by 7", "busy": true})", EBUSY},
                                       {R"({"error": "held by 7", "busy": false})", ENOTSUP},
                                       {R"({"error": "held by 7"})", ENOTSUP}}) {
    std::thread shim = parent_.answer(answer);
    const auto cow = CowMemory::attach(dir_ / "shim");
    shim.join();
    ASSERT_FALSE(cow);
    EXPECT_EQ(cow.error().errnum, errnum) << answer;
    EXPECT_THAT(cow.error().what, HasSubstr("held by 7"));
  }
}

class BadAnswer : public CowMemoryTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(BadAnswer, IsRefused) {
  std::thread shim = parent_.answer(GetParam());
  const auto cow = CowMemory::attach(dir_ / "shim");
  shim.join();
  ASSERT_FALSE(cow);
  EXPECT_EQ(cow.error().errnum, EPROTO) << cow.error().what;
}

INSTANTIATE_TEST_SUITE_P(
    CowMemory, BadAnswer,
    ::testing::Values("[]", "{}", "7", "[{}]", "[", "{\"error\": 1}",
                      R"([{"base_host_virt_addr":4096,"size":4096,"offset":0}])"));

TEST_F(CowMemoryTest, WithoutAShimTheErrorSaysWhatIsMissing) {
  const auto cow = CowMemory::attach(dir_ / "none");
  ASSERT_FALSE(cow);
  EXPECT_EQ(cow.error().errnum, ENOENT);
  EXPECT_THAT(cow.error().what, HasSubstr("libsf-shim.so"));
}

}  // namespace
}  // namespace snowfabric::testing
