// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fabric/crc32c.hpp"
#include "fabric/hash_tree.hpp"
#include "memserver-dpdk/hashed_image.hpp"

namespace snowfabric {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using Bytes = std::vector<char>;

/// A directory of one test, removed with everything in it.
class ImageTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "sf_image_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::filesystem::path file(const Bytes& bytes, const char* name = "image.raw") {
    std::ofstream{dir_ / name, std::ios::binary}.write(bytes.data(),
                                                       static_cast<std::streamsize>(bytes.size()));
    return dir_ / name;
  }
  std::filesystem::path dir_;
};

/// Pages from a pattern: '.' is a zero page, any other character fills its page.
Bytes pages(std::string_view pattern) {
  Bytes bytes;
  for (const char c : pattern) bytes.insert(bytes.end(), kPageSize, c == '.' ? '\0' : c);
  return bytes;
}

Error open_error(const std::filesystem::path& path, const ImageOptions& options = {}) {
  const auto image = Image::open(path, options);
  return image ? Error{0, "opened"} : image.error();
}

TEST_F(ImageTest, HasThePagesChecksumsAndZeroPagesOfItsFile) {
  const auto image = Image::open(file(pages("ab.c.")));
  ASSERT_TRUE(image) << image.error().what;
  EXPECT_EQ(image->nb_pages(), 5U);
  EXPECT_EQ(image->nb_zero_pages(), 2U);
  EXPECT_EQ(image->bytes().size(), 5 * kPageSize);
  EXPECT_EQ(image->page(Gfn{3})[17], std::byte{'c'});
  for (std::uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(image->crc(Gfn{i}), crc32c(image->page(Gfn{i})));
    EXPECT_EQ(image->is_zero(Gfn{i}), i == 2 || i == 4);
  }
}

TEST_F(ImageTest, PagesKnownToBeZeroAreNotRead) {
  // event: two ranges are named, with bytes under them that a read would have found
  const auto image =
      Image::open(file(pages("abcdef")),
                  {.image_id = 1,
                   .zeros = {{.first = Gfn{1}, .nb_pages = 2}, {.first = Gfn{5}, .nb_pages = 1}}});
  ASSERT_TRUE(image) << image.error().what;
  EXPECT_EQ(image->nb_zero_pages(), 3U);
  for (std::uint64_t i = 0; i < 6; ++i) {
    const bool zero = i == 1 || i == 2 || i == 5;
    EXPECT_EQ(image->is_zero(Gfn{i}), zero) << i;
    EXPECT_EQ(image->crc(Gfn{i}),
              zero ? crc32c(std::array<std::byte, kPageSize>{}) : crc32c(image->page(Gfn{i})));
  }
}

TEST_F(ImageTest, ZerosBehindTheLastPageAreRefused) {
  const auto path = file(pages("ab"));
  EXPECT_EQ(open_error(path, {.zeros = {{.first = Gfn{1}, .nb_pages = 2}}}).errnum, EINVAL);
  EXPECT_EQ(open_error(path, {.zeros = {{.first = Gfn{3}, .nb_pages = 1}}}).errnum, EINVAL);
  EXPECT_EQ(open_error(path, {.zeros = {{.first = Gfn{2}, .nb_pages = 0}}}).errnum, 0);
}

TEST_F(ImageTest, FindsASingleByteAnywhereInAPage) {
  Bytes bytes = pages("....");
  bytes[kPageSize] = 1;          // first byte of page 1
  bytes[3 * kPageSize - 1] = 1;  // last byte of page 2
  bytes[3 * kPageSize + 2049] = 1;
  const auto image = Image::open(file(bytes));
  ASSERT_TRUE(image);
  EXPECT_TRUE(image->is_zero(Gfn{0}));
  EXPECT_EQ(image->nb_zero_pages(), 1U);
}

TEST_F(ImageTest, ScansManyChunksInParallelAsOnePageAtATimeWould) {
  Bytes bytes(5000 * kPageSize);  // several chunks, the last one and the last word partial
  std::mt19937 random{20240611};
  for (std::size_t i = 0; i < 5000; ++i)
    if (random() % 3 != 0) bytes[i * kPageSize + random() % kPageSize] = 'x';
  const auto image = Image::open(file(bytes));
  ASSERT_TRUE(image);
  std::uint64_t nb_zero = 0;
  for (std::size_t i = 0; i < 5000; ++i) {
    const std::span<const char> page{bytes.data() + i * kPageSize, kPageSize};
    const bool zero = std::ranges::all_of(page, [](char c) { return c == 0; });
    ASSERT_EQ(image->is_zero(Gfn{i}), zero) << i;
    ASSERT_EQ(image->crc(Gfn{i}), crc32c(std::as_bytes(page))) << i;
    nb_zero += zero ? 1 : 0;
  }
  EXPECT_EQ(image->nb_zero_pages(), nb_zero);
}

TEST_F(ImageTest, LeavesTheBitsBehindTheLastPageClear) {
  const auto image = Image::open(file(pages("a..")));
  ASSERT_TRUE(image);
  ASSERT_EQ(image->zero_words().size(), 1U);
  EXPECT_EQ(image->zero_words()[0], 0b110U);
}

TEST_F(ImageTest, IdFollowsTheContentAndTheSize) {
  const auto id = [this](std::string_view pattern) {
    const auto image = Image::open(file(pages(pattern)));
    return image ? image->image_id() : 0;
  };
  const std::uint64_t original = id("abc");
  EXPECT_NE(original, 0U);
  EXPECT_EQ(id("abc"), original);
  EXPECT_NE(id("abd"), original);
  EXPECT_NE(id("acb"), original);
  EXPECT_NE(id("abc."), original);
  EXPECT_NE(id("."), id(".."));
}

TEST_F(ImageTest, TakesTheIdAndEpochItIsGiven) {
  const auto image = Image::open(file(pages("a")), {.image_id = 0x1234, .epoch = 7});
  ASSERT_TRUE(image);
  EXPECT_EQ(image->image_id(), 0x1234U);
  EXPECT_EQ(image->epoch(), 7U);
  EXPECT_EQ(open_error(file(pages("a")), {.image_id = 0}).errnum, EINVAL);
}

TEST_F(ImageTest, SurvivesBeingMoved) {
  auto first = Image::open(file(pages("ab")));
  ASSERT_TRUE(first);
  auto second = Image::open(file(pages("cde"), "second.raw"));
  ASSERT_TRUE(second);
  const std::byte* const at = first->bytes().data();
  *second = std::move(*first);
  EXPECT_EQ(second->bytes().data(), at);
  EXPECT_EQ(second->page(Gfn{1})[0], std::byte{'b'});
  const Image third{std::move(*second)};
  EXPECT_EQ(third.bytes().data(), at);
  EXPECT_EQ(third.nb_pages(), 2U);
}

TEST_F(ImageTest, MapsAMemfd) {
  const int fd = ::memfd_create("image", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  const Bytes bytes = pages("a.");
  ASSERT_EQ(::write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const auto image = Image::open("/proc/self/fd/" + std::to_string(fd));
  ASSERT_TRUE(image) << image.error().what;
  EXPECT_EQ(image->nb_zero_pages(), 1U);
  ::close(fd);
}

TEST_F(ImageTest, ItsHashTreeIsAnImageOfItsOwnSpaceOverAllPagesAlsoThoseLeftOut) {
  auto image = Image::open(file(pages("a.bc")),
                           {.image_id = 5, .epoch = 3, .hash_pages = true, .zeros = {{Gfn{2}, 1}}});
  ASSERT_TRUE(image) << image.error().what;
  const auto tree = hash_tree_of(*image);
  ASSERT_TRUE(tree) << tree.error().what;
  EXPECT_EQ(tree->nodes.image_id(), 5U);
  EXPECT_EQ(tree->nodes.epoch(), 3U);
  EXPECT_EQ(tree->nodes.space(), kHashTreeSpace);
  auto copy = HashTree::with_room_for(tree->nodes.nb_pages());
  ASSERT_TRUE(copy);
  std::ranges::copy(tree->nodes.page(Gfn{0}), copy->node(Gfn{0}).begin());
  EXPECT_THAT(copy->misfits(tree->root), IsEmpty());
  EXPECT_TRUE(copy->fits(Gfn{0}, image->page(Gfn{0})));
  EXPECT_TRUE(copy->fits(Gfn{3}, image->page(Gfn{3})));
  EXPECT_EQ(copy->nb_zero({Gfn{1}, 3}), 2U) << "zero, and read as such whatever it holds";
}

TEST_F(ImageTest, TellsWhyAFileIsNoImage) {
  EXPECT_EQ(open_error(dir_ / "absent").errnum, ENOENT);
  EXPECT_THAT(open_error(dir_ / "absent").what, HasSubstr((dir_ / "absent").string()));
  EXPECT_EQ(open_error(dir_).errnum, EISDIR);
  EXPECT_EQ(open_error(file({})).errnum, EINVAL);
  EXPECT_THAT(open_error(file({})).what, HasSubstr("is empty"));
  EXPECT_EQ(open_error(file(Bytes(5000))).errnum, EINVAL);
  EXPECT_THAT(open_error(file(Bytes(5000))).what, HasSubstr("5000 bytes"));
  EXPECT_EQ(open_error("/dev/null").errnum, EINVAL);
}

TEST_F(ImageTest, DoesNotWaitForTheWriterOfAFifo) {
  ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(open_error(dir_ / "fifo").errnum, EINVAL);
}

TEST_F(ImageTest, TellsThatItMayNotRead) {
  const auto path = file(pages("a"));
  ASSERT_EQ(::chmod(path.c_str(), 0200), 0);
  ASSERT_EQ(::chmod(dir_.c_str(), 0755), 0);
  const auto nobody = static_cast<uid_t>(65534);
  const int before = ::setfsuid(nobody);  // root may read anything; affects this thread alone
  const Error error = open_error(path);
  ::setfsuid(static_cast<uid_t>(before));
  EXPECT_EQ(error.errnum, EACCES);
}

TEST_F(ImageTest, RefusesMorePagesThanThirtyTwoBitsCount) {
  const int fd = ::memfd_create("image", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::ftruncate(fd, off_t{1} << 44), 0) << "sparse: takes no memory";
  const Error error = open_error("/proc/self/fd/" + std::to_string(fd));
  EXPECT_EQ(error.errnum, EFBIG);
  EXPECT_THAT(error.what, HasSubstr("4294967296 pages"));
  ::close(fd);
}

TEST_F(ImageTest, RefusesToServeMorePagesThanAreThere) {
  const Error error = open_error(file(pages("ab")), {.nb_pages = 3});
  EXPECT_EQ(error.errnum, EINVAL);
  EXPECT_THAT(error.what, HasSubstr("2 pages alone"));
}

TEST_F(ImageTest, TellsThatAFileCannotBeMapped) {
  const int fd = ::memfd_create("image", MFD_CLOEXEC | MFD_HUGETLB);
  if (fd < 0) GTEST_SKIP() << "this kernel has no hugetlbfs";
  ASSERT_EQ(::ftruncate(fd, off_t{1} << 40), 0);
  const Error error = open_error("/proc/self/fd/" + std::to_string(fd));
  EXPECT_EQ(error.errnum, ENOMEM) << "no machine has so many hugepages";
  EXPECT_THAT(error.what, HasSubstr("mmap"));
  ::close(fd);
}

TEST_F(ImageTest, AFileHasNoPagesAside) {
  EXPECT_EQ(Image::open(file(pages("ab")))->nb_aside_pages(), 0U);
}

TEST_F(ImageTest, AStopEndsTheScan) {
  const std::atomic<bool> stop{true};
  const Error error = open_error(file(pages("ab")), {.stop = &stop});
  EXPECT_EQ(error.errnum, ECANCELED);
  EXPECT_THAT(error.what, HasSubstr("image.raw was stopped"));
}

TEST_F(ImageTest, ShowsProgressWhereItIsTold) {
  const int fd = ::memfd_create("progress", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_TRUE(Image::open(file(Bytes(3000 * kPageSize)), {.progress_fd = fd}));
  std::string text(1024, '\0');
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  ASSERT_GT(n, 0);
  EXPECT_THAT(text, HasSubstr("scan image.raw: 3000 pages, 12.3 MB"));
  ::close(fd);
}

TEST(ImageSigbus, IsHandledFromWhenThatIsAskedForAndNoOtherSignal) {
  struct sigaction bus{}, segv{}, after{};
  ASSERT_EQ(sigaction(SIGSEGV, nullptr, &segv), 0);
  struct sigaction none{};
  none.sa_handler = SIG_DFL;
  ASSERT_EQ(sigaction(SIGBUS, &none, &bus), 0);
  install_sigbus_handler();
  ASSERT_EQ(sigaction(SIGBUS, &bus, &after), 0);
  EXPECT_NE(after.sa_handler, SIG_DFL);
  ASSERT_EQ(sigaction(SIGSEGV, nullptr, &after), 0);
  EXPECT_EQ(after.sa_handler, segv.sa_handler);
}

// No fixture: the process that dies would leave its folder behind.
TEST(ImageDeathTest, ATruncatedFileEndsTheProcessWithAMessage) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        install_sigbus_handler();
        const int fd = ::memfd_create("image", MFD_CLOEXEC);
        if (::ftruncate(fd, 3 * kPageSize) != 0) std::abort();
        const auto image = Image::open("/proc/self/fd/" + std::to_string(fd));
        if (!image || ::ftruncate(fd, 0) != 0) std::abort();
        [[maybe_unused]] const volatile std::byte gone = image->page(Gfn{2})[0];
      },
      testing::ExitedWithCode(kSigbusExitStatus), "SIGBUS: a mapped image was truncated");
}

}  // namespace
}  // namespace snowfabric
