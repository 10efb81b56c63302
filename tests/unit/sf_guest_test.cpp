// SPDX-License-Identifier: BSD-3-Clause
#include <poll.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include "memtap-dpdk/guest_listener.hpp"
#include "tests/unit/guest_peer.hpp"
#include "tools/sf_guest_order.hpp"

/// The program sf-guest against the real guest side of memtap, in this process.
namespace snowfabric {
namespace {

using testing::TempDir;

constexpr std::size_t kPages = 256;
constexpr int kWaitMs = 5000;

TEST(TouchOrder, EveryOrderTouchesEveryPageOnce) {
  for (const auto order : {TouchOrder::kSequential, TouchOrder::kRandom, TouchOrder::kHotSet}) {
    const auto pages = touch_order({.order = order, .nb_pages = 1000});
    EXPECT_EQ(pages.size(), 1000U);
    EXPECT_EQ(std::set(pages.begin(), pages.end()).size(), 1000U);
  }
}

TEST(TouchOrder, GuestsShareTheHotSetAndItsOrderAndNothingElse) {
  TouchPlan plan{.order = TouchOrder::kHotSet, .nb_pages = 1000, .seed = 1, .hot_percent = 30};
  const auto one = touch_order(plan);
  plan.seed = 2;
  const auto two = touch_order(plan);
  EXPECT_TRUE(std::equal(one.begin(), one.begin() + 300, two.begin()));
  EXPECT_FALSE(std::equal(one.begin() + 300, one.end(), two.begin() + 300));
  plan.shared_seed = 2;
  EXPECT_FALSE(std::equal(one.begin(), one.begin() + 300, touch_order(plan).begin()));
}

TEST(TouchOrder, ThreadsShareAnOrderWithoutGapOrRepeat) {
  const auto order = touch_order({.order = TouchOrder::kRandom, .nb_pages = 10, .limit_pages = 7});
  std::vector<std::uint64_t> together;
  for (unsigned t = 0; t < 3; ++t)
    for (const auto page : share_of(order, t, 3)) together.push_back(page);
  EXPECT_EQ(std::multiset(together.begin(), together.end()),
            std::multiset(order.begin(), order.end()));
}

class SfGuestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const UniqueFd probe{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    if (!probe) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
    for (std::size_t i = 0; i < kPages; ++i)
      for (std::size_t j = 0; j < kPageSize; ++j)
        image_.push_back(static_cast<std::byte>(i % 8 == 0 ? 0 : i * 31 + j));
    std::ofstream{dir_ / "image", std::ios::binary}.write(
        reinterpret_cast<const char*>(image_.data()), static_cast<std::streamsize>(image_.size()));
    auto listener = GuestListener::create(
        {.socket_path = dir_ / "sock", .presence_dir = dir_ / "presence", .image = {1, kPages, 1}});
    ASSERT_TRUE(listener.has_value()) << listener.error().what;
    listener_ = std::move(*listener);
  }
  void TearDown() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
  }

  void start(std::vector<std::string> more) {
    std::vector<std::string> words{SNOWFABRIC_SF_GUEST, "--socket",     dir_ / "sock",
                                   "--image",           dir_ / "image", "--json",
                                   dir_ / "json",       "--id",         "7"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
  }

  /// Serves until the guest is gone. @return its exit code, or 1000 + signal
  int serve(const std::function<bool(ProcessGuest&, Gfn)>& answer) {
    std::vector<ProcessGuest*> guests;
    for (;;) {
      pollfd p{listener_->epoll_fd(), POLLIN, 0};
      if (poll(&p, 1, kWaitMs) != 1) {
        ADD_FAILURE() << "the guest does nothing";
        return -1;
      }
      auto events = listener_->poll(Nanos{0});
      for (const Error& error : events.rejected) ADD_FAILURE() << error.what;
      for (auto& guest : events.gone) gone_ = std::move(guest);
      if (gone_) return exit_code();
      for (const auto& guest : listener_->guests()) {
        std::array<Gfn, 8> faults;
        const std::size_t nb_faults = guest->poll_faults(faults);
        for (std::size_t i = 0; i < nb_faults; ++i)
          if (!answer(*guest, faults[i])) return -2;
      }
    }
  }
  int exit_code() {
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  bool install(ProcessGuest& guest, Gfn page) {
    const auto bytes = std::span{image_}.subspan(page.value * kPageSize, kPageSize);
    const bool zero = page.value % 8 == 0;
    Install verdict = Install::kAgain;
    while (verdict == Install::kAgain)
      verdict = zero ? guest.install_zeros({page, 1}) : guest.install(page, bytes);
    return verdict == Install::kDone;
  }
  int serve_all() {
    return serve([this](ProcessGuest& guest, Gfn page) { return install(guest, page); });
  }
  nlohmann::json report() {
    std::ifstream file{dir_ / "json"};
    return nlohmann::json::parse(file, nullptr, false);
  }

  TempDir dir_;
  std::vector<std::byte> image_;
  std::unique_ptr<GuestListener> listener_;
  std::unique_ptr<ProcessGuest> gone_;
  pid_t child_ = 0;
};

TEST_F(SfGuestTest, VerifiesAnImageAndReportsWhatItSaw) {
  start({});
  EXPECT_EQ(serve_all(), 0);
  const auto json = report();
  EXPECT_EQ(json["id"], 7);
  EXPECT_EQ(json["pages"], kPages);
  EXPECT_EQ(json["verified"], true);
  EXPECT_EQ(json["faults"], kPages) << "each page waited for memtap";
  EXPECT_GT(json["fault_us_p50"], 0);
  EXPECT_GE(json["fault_us_p99"], json["fault_us_p50"]);
  EXPECT_GE(json["fault_us_max"], json["fault_us_p99"]);
  EXPECT_GT(json["first_page_us"], 0);
  EXPECT_GT(json["complete_s"], 0);
  EXPECT_EQ(gone_->counters().faults.read(), kPages);
}

TEST_F(SfGuestTest, PagesThatCameUnaskedMakeNoFault) {
  start({});
  // The first fault brings the whole image along.
  const int code = serve(
      [this](ProcessGuest& guest, Gfn) { return guest.install(Gfn{0}, image_) == Install::kDone; });
  EXPECT_EQ(code, 0);
  EXPECT_LE(report()["faults"], 2);
}

TEST_F(SfGuestTest, ManyThreadsOnTheSamePagesInRandomOrderAllVerify) {
  start({"--threads", "4", "--same-pages", "--order", "random", "--two-fds"});
  EXPECT_EQ(serve_all(), 0);
  EXPECT_EQ(gone_->counters().faults.read(), kPages);
  EXPECT_EQ(report()["verified"], true);
}

TEST_F(SfGuestTest, PagesGivenBackReadAsZeros) {
  start({"--threads", "2", "--order", "hotset", "--remove", "50", "--old-handshake"});
  EXPECT_EQ(serve_all(), 0);
  EXPECT_EQ(report()["removed"], kPages / 2);
  EXPECT_EQ(report()["removed_not_zero"], 0);
  EXPECT_EQ(gone_->counters().removed_pages.read(), kPages / 2);
  EXPECT_EQ(gone_->counters().faults.read(), kPages) << "none was fetched again";
}

TEST_F(SfGuestTest, AWrongByteIsFoundAndNamed) {
  image_[77 * kPageSize + 4095] ^= std::byte{1};
  start({});
  EXPECT_EQ(serve_all(), 1);
  EXPECT_EQ(report()["verified"], false);
  EXPECT_EQ(report()["mismatches"], 1);
  EXPECT_EQ(report()["first_mismatch"], 77);
}

TEST_F(SfGuestTest, LeavesWithAnErrorWhenMemtapGoesBeforeItIsDone) {
  start({"--limit-pages", "10"});
  EXPECT_EQ(serve([](ProcessGuest&, Gfn) { return false; }), -2) << "a fault is left unanswered";
  listener_.reset();
  EXPECT_EQ(exit_code(), 3);
}

TEST_F(SfGuestTest, APoisonedPageIsAnErrorOfItsOwn) {
  start({});
  FailMeans means = FailMeans::kAgain;
  const int code = serve([&](ProcessGuest& guest, Gfn page) {
    if (page != Gfn{5}) return install(guest, page);
    means = guest.fail(page);
    return true;
  });
  // Before Linux 6.6 there is no UFFDIO_POISON.
  EXPECT_EQ(code, means == FailMeans::kPoisoned ? 4 : 1000 + SIGKILL);
}

TEST_F(SfGuestTest, SigtermEndsItEvenWhileItWaitsOnAPage) {
  start({"--threads", "2"});
  const int code = serve([this](ProcessGuest&, Gfn) { return ::kill(child_, SIGTERM) == 0; });
  EXPECT_EQ(code, 143);
}

TEST_F(SfGuestTest, HoldStaysAfterTheReportUntilSigterm) {
  start({"--hold"});
  std::size_t nb_pages = 0;
  serve([&](ProcessGuest& guest, Gfn page) { return install(guest, page) && ++nb_pages < kPages; });
  while (!std::filesystem::exists(dir_ / "json")) std::this_thread::yield();
  EXPECT_EQ(waitpid(child_, nullptr, WNOHANG), 0) << "still there";
  ::kill(child_, SIGTERM);
  EXPECT_EQ(exit_code(), 143);
}

TEST_F(SfGuestTest, SaysWhatIsWrongWithItsArguments) {
  start({"--order", "backwards"});
  EXPECT_EQ(exit_code(), 2) << "no such order";
  listener_.reset();
  start({"--connect-timeout", "0"});
  EXPECT_EQ(exit_code(), 2) << "no memtap";
  std::filesystem::remove(dir_ / "image");
  start({});
  EXPECT_EQ(exit_code(), 2) << "no image";
}

}  // namespace
}  // namespace snowfabric
