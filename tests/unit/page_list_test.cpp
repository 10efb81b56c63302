// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/page_list.hpp"

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>

namespace snowfabric {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::IsEmpty;

struct PageList : testing::Test {
  ~PageList() override { std::remove(path.c_str()); }

  Result<std::vector<PageRange>> read(std::string_view text, std::uint64_t nb_pages = 1000) const {
    std::ofstream{path} << text;
    return read_page_list(path, nb_pages);
  }
  void expect_error(std::string_view text, int errnum, const std::string& what) const {
    const auto list = read(text);
    ASSERT_FALSE(list) << text;
    EXPECT_EQ(list.error().errnum, errnum) << text;
    EXPECT_EQ(list.error().what, path + what);
  }

  std::string path =
      std::filesystem::temp_directory_path() / ("page_list_test-" + std::to_string(getpid()));
};

TEST_F(PageList, NumbersAndRangesKeepTheirOrder) {
  const auto list = read("17\n0x20-0x3f # kernel\n\n# all of it\n \t 3 - 4 \r\n999");
  ASSERT_TRUE(list) << list.error().what;
  EXPECT_THAT(*list, ElementsAre(PageRange{Gfn{17}, 1}, PageRange{Gfn{0x20}, 0x20},
                                 PageRange{Gfn{3}, 2}, PageRange{Gfn{999}, 1}));
}

TEST_F(PageList, WhatIsWrittenIsRead) {
  const std::vector<PageRange> pages{{Gfn{7}, 1}, {Gfn{900}, 100}, {Gfn{1}, 2}};
  const auto list = read(to_page_list(pages));
  ASSERT_TRUE(list) << list.error().what;
  EXPECT_EQ(*list, pages);
}

TEST_F(PageList, AnEmptyFileIsAnEmptyList) {
  for (const char* text : {"", "\n", "# none"}) {
    const auto list = read(text);
    ASSERT_TRUE(list) << text;
    EXPECT_THAT(*list, IsEmpty());
  }
}

TEST_F(PageList, ABadLineIsNamed) {
  for (const char* line : {"x", "-", "5-", "-5", "5-4", "1 2-", "0x", "+1", "1,2", "3-4-5",
                           "18446744073709551616", "0-18446744073709551615", "0-0xffffffff"})
    expect_error(std::string{"1\n2\n"} + line + "\n4\n", EINVAL,
                 ":3: neither a page number nor a range");
  expect_error(std::string_view{"1\0x\n", 4}, EINVAL, ":1: neither a page number nor a range");
}

TEST_F(PageList, PagesBeyondTheImageAreRefused) {
  EXPECT_TRUE(read("998-999\n"));
  expect_error("0\n998-1000\n", EINVAL, ":2: page 1000 is beyond the image of 1000");
  EXPECT_TRUE(read("0-0xfffffffe\n", kMaxImagePages));
}

TEST_F(PageList, WhatHasNoLinesIsNoList) {
  expect_error("1\n" + std::string(100'000, '0'), EINVAL, ":2: not a list of pages");
}

TEST_F(PageList, WhatCannotBeReadIsAnError) {
  EXPECT_EQ(read_page_list("/nowhere/at-all").error().errnum, ENOENT);
  const auto folder = read_page_list("/tmp");
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().errnum, EISDIR);
  EXPECT_THAT(folder.error().what, EndsWith("/tmp"));
}

}  // namespace
}  // namespace snowfabric
