// SPDX-License-Identifier: BSD-3-Clause
// A frozen image in a file, and what is wrong with files that are none.
#include "memserver-dpdk/checkpoint.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <vector>

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

namespace snowfabric {
namespace {

using testing::HasSubstr;

/// Pages from a pattern: '.' is a zero page, any other character fills its page.
struct CheckpointTest : testing::Test {
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "sf_checkpoint_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir = name;
    path = dir / "checkpoint";
  }
  void TearDown() override { std::filesystem::remove_all(dir); }

  Image image_of(std::string_view pattern) {
    std::ofstream out{dir / "image", std::ios::binary};
    for (const char c : pattern) out << std::string(kPageSize, c == '.' ? '\0' : c);
    out.close();
    auto image = Image::open(dir / "image", {.image_id = 0xabc, .epoch = 7});
    EXPECT_TRUE(image);
    return std::move(*image);
  }
  Result<void> write(const Image& image) {
    return write_checkpoint(image, path, std::nullopt, stop);
  }
  Error error() {
    const auto opened = open_checkpoint(path, {});
    return opened ? Error{0, "it is taken"} : opened.error();
  }
  void flip(std::uint64_t offset) {
    std::fstream file{path, std::ios::in | std::ios::out | std::ios::binary};
    file.seekg(static_cast<std::streamoff>(offset));
    const auto byte = static_cast<char>(file.get() ^ 1);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
  }
  /// Names in the folder that begin with the checkpoint's.
  std::size_t nb_files() const {
    std::size_t nb = 0;
    for (const auto& entry : std::filesystem::directory_iterator{dir})
      nb += entry.path().filename().string().starts_with("checkpoint") ? 1 : 0;
    return nb;
  }

  std::filesystem::path dir, path;
  std::atomic<bool> stop{false};
};

TEST_F(CheckpointTest, HasTheImageWithItsNameAndItsZeros) {
  const std::string pattern = "a" + std::string(700, '.') + std::string(600, 'b') + ".c.";
  const Image image = image_of(pattern);
  ASSERT_TRUE(write(image));
  EXPECT_EQ(nb_files(), 1U);
  const auto restored = open_checkpoint(path, {});
  ASSERT_TRUE(restored) << restored.error().what;
  EXPECT_EQ(restored->image_id(), 0xabcU);
  EXPECT_EQ(restored->epoch(), 7U);
  ASSERT_EQ(restored->nb_pages(), pattern.size());
  for (std::uint64_t page = 0; page < pattern.size(); ++page) {
    EXPECT_EQ(restored->is_zero(Gfn{page}), pattern[page] == '.') << page;
    EXPECT_TRUE(std::ranges::equal(restored->page(Gfn{page}), image.page(Gfn{page}))) << page;
  }
}

TEST_F(CheckpointTest, ZeroPagesTakeNoRoomAndNobodyElseMayReadIt) {
  ASSERT_TRUE(write(image_of("a" + std::string(4000, '.'))));
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_LT(st.st_blocks * 512, 20 * 4096);
  EXPECT_EQ(st.st_mode & 0777U, 0600U);
}

TEST_F(CheckpointTest, TakesThePlaceOfTheOneBefore) {
  ASSERT_TRUE(write(image_of("ab")));
  ASSERT_TRUE(write(image_of("abc")));
  EXPECT_EQ(open_checkpoint(path, {})->nb_pages(), 3U);
  EXPECT_EQ(nb_files(), 1U);
}

TEST_F(CheckpointTest, OneThatIsStoppedLeavesNothing) {
  stop = true;
  EXPECT_EQ(write(image_of("ab")).error().errnum, ECANCELED);
  EXPECT_EQ(nb_files(), 0U);
}

TEST_F(CheckpointTest, ADiskThatIsFullLeavesTheOneBefore) {
  ASSERT_TRUE(write(image_of("ab")));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const Image large = image_of(std::string(600, 'x'));
  const auto on_signal = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{1U << 20U, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const auto written = write(large);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, on_signal);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().errnum, EFBIG);
  EXPECT_THAT(written.error().what, HasSubstr("write("));
  EXPECT_EQ(open_checkpoint(path, {})->nb_pages(), 2U);
  EXPECT_EQ(nb_files(), 1U);
}

TEST_F(CheckpointTest, IsNotWrittenOverSomethingElse) {
  const Image image = image_of("ab");
  path = dir / "image";
  EXPECT_EQ(write(image).error().errnum, EEXIST);
  EXPECT_EQ(std::filesystem::file_size(path), 2 * kPageSize);
  path = dir / "checkpoint";
  std::filesystem::create_directory(path);
  EXPECT_EQ(write(image).error().errnum, EEXIST);
}

TEST_F(CheckpointTest, APageThatIsNotAsItWasFrozenLeavesTheOneBefore) {
  ASSERT_TRUE(write(image_of("ab")));
  const Image image = image_of("abc");
  std::fstream{dir / "image", std::ios::in | std::ios::out | std::ios::binary} << 'x';
  EXPECT_EQ(write(image).error().errnum, EBADMSG);
  EXPECT_EQ(open_checkpoint(path, {})->nb_pages(), 2U);
  EXPECT_EQ(nb_files(), 1U);
}

TEST_F(CheckpointTest, ARawImageIsNone) {
  image_of("abc");
  path = dir / "image";
  EXPECT_EQ(error().errnum, EBADMSG);
  EXPECT_THAT(error().what, HasSubstr("it is none"));
}

TEST_F(CheckpointTest, EveryTruncatedOneIsRefused) {
  const std::uint64_t nb_pages = 5;
  ASSERT_TRUE(write(image_of("ab.cd")));
  for (std::uint64_t left = nb_pages + 1; left > 0; --left) {
    std::filesystem::resize_file(path, left * kPageSize);
    EXPECT_EQ(error().errnum, EBADMSG) << left;
  }
  std::filesystem::resize_file(path, 100);
  EXPECT_EQ(error().errnum, EINVAL);
  std::filesystem::resize_file(path, 0);
  EXPECT_EQ(error().errnum, EINVAL);
}

TEST_F(CheckpointTest, OneWithPagesMoreIsRefused) {
  ASSERT_TRUE(write(image_of("ab")));
  std::ifstream in{path, std::ios::binary};
  const std::string bytes{std::istreambuf_iterator<char>{in}, {}};
  std::ofstream{path, std::ios::binary} << std::string(kPageSize, 'x') << bytes;
  EXPECT_THAT(error().what, HasSubstr("not the size"));
}

TEST_F(CheckpointTest, AFlippedBitIsFoundWhereverItLies) {
  const Image image = image_of("ab.cd");
  const std::uint64_t table = image.nb_pages() * kPageSize, trailer = table + kPageSize;
  const std::vector<std::pair<std::uint64_t, const char*>> flips{
      {1 * kPageSize + 17, "page 1 is not"}, {2 * kPageSize, "page 2 is not"},
      {table + 3, "table of checksums"},     {trailer, "it is none"},
      {trailer + 8, "trailer is damaged"},   {trailer + 16, "trailer is damaged"},
      {trailer + 24, "trailer is damaged"},  {trailer + 28, "trailer is damaged"},
      {trailer + 32, "trailer is damaged"}};
  for (const auto& [offset, says] : flips) {
    std::filesystem::remove(path);  // it may be none by now
    ASSERT_TRUE(write(image));
    flip(offset);
    EXPECT_EQ(error().errnum, EBADMSG) << offset;
    EXPECT_THAT(error().what, HasSubstr(says)) << offset;
  }
}

}  // namespace
}  // namespace snowfabric
