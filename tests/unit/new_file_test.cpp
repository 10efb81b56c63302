// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/new_file.hpp"

#include <fcntl.h>
#include <stdlib.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>

#include <gtest/gtest.h>
#include <sys/stat.h>

namespace snowfabric {
namespace {

class NewFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "sf_new_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = (folder_ / "file").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] std::ptrdiff_t nb_files() const {
    return std::distance(std::filesystem::directory_iterator{folder_}, {});
  }
  [[nodiscard]] std::string content() const {
    std::ifstream file{path_};
    return {std::istreambuf_iterator<char>{file}, {}};
  }
  [[nodiscard]] Result<NewFile> written(const std::string& text) const {
    auto file = NewFile::create(path_);
    EXPECT_TRUE(file && file->write(std::as_bytes(std::span{text})));
    return file;
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(NewFileTest, HasNoNameThatADeadWriterCouldLeave) {
  if (!UniqueFd{::open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR)})
    GTEST_SKIP() << "the temporary folder's file system has no O_TMPFILE";
  const auto file = written("half");
  EXPECT_EQ(nb_files(), 0);
}

TEST_F(NewFileTest, IsInItsPlaceOnceItIsFinishedForItsOwnerAlone) {
  auto file = written("whole");
  ASSERT_TRUE(file->finish());
  EXPECT_TRUE(file->is_in_place());
  EXPECT_EQ(nb_files(), 1);
  EXPECT_EQ(content(), "whole");
  struct stat st{};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777U, 0600U);
}

TEST_F(NewFileTest, TakesThePlaceOfTheOneBeforeNoSooner) {
  std::ofstream{path_} << "before";
  {
    const auto unfinished = written("half");
    EXPECT_EQ(content(), "before");
  }
  EXPECT_EQ(content(), "before");
  auto file = written("after");
  ASSERT_TRUE(file->finish());
  EXPECT_EQ(content(), "after");
  EXPECT_EQ(nb_files(), 1);
}

TEST_F(NewFileTest, TakesThePlaceOfNothingElse) {
  std::filesystem::create_directory(path_);
  const auto file = NewFile::create(path_);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().errnum, EINVAL);
}

TEST_F(NewFileTest, LeavesNothingIfItsPlaceCannotBeHad) {
  {
    auto file = written("whole");
    std::filesystem::create_directory(path_);
    EXPECT_FALSE(file->finish());
    EXPECT_FALSE(file->is_in_place());
  }
  EXPECT_EQ(nb_files(), 1) << "but for the folder that is in its way";
}

}  // namespace
}  // namespace snowfabric
