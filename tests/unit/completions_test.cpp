// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/completions.hpp"

#include <fmt/format.h>

#include "tests/unit/engine_harness.hpp"
#include "tests/unit/qemu_clone_fixture.hpp"

namespace snowfabric::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

/// A QEMU clone, in this process, that somebody has completed.
struct CompletionsTest : QemuCloneTest {
  void SetUp() override {
    client_.join(kClonePages);
    begin(kHandover);
    host_.attach(*guest_);
  }
  void on_events(ListenerEvents& events) override {
    for (CompletionRequest& request : events.to_complete)
      completions_.begin(std::move(request), listener_->guests(), host_);
    for (const auto& guest : events.gone) {
      completions_.on_gone(*guest);
      host_.detach(*guest);
    }
  }

  void ask(pid_t pid) {
    asker_ = connect_to(dir_ / "sock");
    ASSERT_TRUE(send_with_fds(asker_.get(), fmt::format(R"([{{"complete": {}}}])", pid), {}));
    for (int i = 0; i < 3; ++i) poll_listener();
  }
  void step(bool server_lives = true) {
    for (int i = 0; i < 2; ++i) host_.poll_faults(client_.now);  // the second finds none absent
    completions_.step(host_, server_lives, client_.now);
    client_.now += 1s;
  }
  void all_comes() { host_.on_zeros({Gfn{0}, kClonePages}, client_.now); }
  /// What was said to who asked.
  std::string said() {
    std::array<char, 1024> text{};
    const ssize_t n = recv(asker_.get(), text.data(), text.size(), MSG_DONTWAIT);
    return {text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
  }

  test::TestClient client_;
  HostStats stats_;
  Host host_{client_.engine, stats_, 0, 64};
  Completions completions_;
  UniqueFd asker_;
};

TEST_F(CompletionsTest, WhatIsMissingIsSaidOnceASecondAndThenThatNothingIs) {
  ask(getpid());
  step();
  EXPECT_EQ(said(), "{\"missing\": 1024}\n");
  all_comes();
  step();
  EXPECT_THAT(said(), IsEmpty()) << "QEMU has not ended its migration yet";
  qemu_ = UniqueFd{};
  std::array<Gfn, 1> none;
  guest_->poll_faults(none);
  poll_listener();
  EXPECT_EQ(said(), "{\"complete\": true}\n");
}

TEST_F(CompletionsTest, AProcessThatIsNoGuestIsUnknown) {
  ask(1);
  EXPECT_EQ(said(), "{\"unknown\": true}\n");
}

TEST_F(CompletionsTest, ACloneThatEndsBeforeItHasAllIsAnError) {
  ask(getpid());
  qemu_ = UniqueFd{};
  std::array<Gfn, 1> none;
  guest_->poll_faults(none);
  poll_listener();
  EXPECT_THAT(said(), HasSubstr("1024 pages missing"));
}

TEST_F(CompletionsTest, ADeadMemserverIsAnError) {
  ask(getpid());
  step(false);
  EXPECT_THAT(said(), StartsWith("{\"error\": \"the memserver"));
  all_comes();
  step();
  EXPECT_THAT(said(), IsEmpty());
}

TEST_F(CompletionsTest, AMemserverThatDiesMeanwhileIsAnErrorThoughNoGuestWaits) {
  ask(getpid());
  for (int second = 0; second < 24; ++second) {  // half of each counts: it looks seldom
    step(client_.engine.state() != ClientState::kServerDead);
    client_.send();
  }
  EXPECT_THAT(said(), HasSubstr("{\"error\": \"the memserver"));
}

TEST_F(CompletionsTest, WhoeverAsksAgainTakesThePlaceOfTheOneBefore) {
  ask(getpid());
  UniqueFd first = std::move(asker_);
  ask(getpid());
  step();
  EXPECT_EQ(said(), "{\"missing\": 1024}\n");
  std::swap(asker_, first);
  EXPECT_THAT(said(), StartsWith("{\"error\": \"somebody else"));
}

TEST_F(CompletionsTest, WhoeverAskedMayHangUp) {
  ask(getpid());
  asker_ = UniqueFd{};
  step();
  EXPECT_TRUE(host_.completing(*guest_));
  all_comes();
  step();
  EXPECT_FALSE(host_.completing(*guest_));
}

}  // namespace
}  // namespace snowfabric::testing
