// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/progress.hpp"

#include <pty.h>
#include <unistd.h>

#include <array>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::StartsWith;

TEST(ProgressLine, ShowsShareBarAndRate) {
  EXPECT_EQ(progress_line({"scan a", 500'000'000, 1'000'000'000, 250ms}),
            "scan a [###############...............]  50%  2.0 GB/s");
}

TEST(ProgressLine, SurvivesNothingDoneAndMoreThanAll) {
  EXPECT_THAT(progress_line({"t", 0, 4096, 0ns}), HasSubstr("]   0%  0.0 GB/s"));
  EXPECT_THAT(progress_line({"t", 8192, 4096, 1s}), HasSubstr("] 100%"));
  EXPECT_THAT(progress_line({"t", 0, 0, 1s}), HasSubstr("] 100%"));
}

TEST(SummaryLine, CountsPagesBytesAndTime) {
  EXPECT_EQ(summary_line({"scan a", 4096'000, 4096'000, 500ms}),
            "scan a: 1000 pages, 4.1 MB in 0.50 s, 0.0 GB/s");
}

std::string contents(int fd) {
  std::string text(4096, '\0');
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return text;
}

TEST(Progress, WithoutATerminalSaysOneLineAtEachEndWhateverTheThreads) {
  const int fd = ::memfd_create("progress", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  {
    Progress progress{"scan b", 8192 * 1000, fd};
    EXPECT_EQ(contents(fd), "scan b: 8.2 MB\n");
    const auto add = [&progress] {
      for (int i = 0; i < 1000; ++i) progress.add(4096);
    };
    std::jthread one{add}, two{add};
  }
  EXPECT_THAT(contents(fd), StartsWith("scan b: 8.2 MB\nscan b: 2000 pages, 8.2 MB in "));
  ::close(fd);
}

TEST(Progress, OnATerminalDrawsABarAndReplacesItByTheSummary) {
  int terminal = -1, program = -1;
  ASSERT_EQ(::openpty(&terminal, &program, nullptr, nullptr, nullptr), 0);
  {
    Progress progress{"scan c", 8192, program};
    progress.add(4096);
    progress.add(4096);  // within the redraw interval: not drawn
  }
  std::string shown;
  while (!shown.contains(" pages")) {  // what was written may come in pieces
    std::array<char, 1024> text{};
    const ssize_t n = ::read(terminal, text.data(), text.size());
    ASSERT_GT(n, 0) << shown;
    shown.append(text.data(), static_cast<std::size_t>(n));
  }
  EXPECT_THAT(shown, StartsWith("\rscan c [###############...............]  50%"));
  EXPECT_THAT(shown, HasSubstr("\r\x1b[Kscan c: 2 pages"));
  ::close(program);
  ::close(terminal);
}

}  // namespace
}  // namespace snowfabric
