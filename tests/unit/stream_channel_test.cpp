// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/stream_channel.hpp"

#include <array>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <sys/socket.h>

#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/frozen_memory.hpp"

namespace snowfabric::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

/// The test is QEMU.
struct StreamChannelTest : ::testing::Test {
  StreamChannelTest() {
    std::array<int, 2> ends{};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    qemu_ = UniqueFd{ends[0]};
    ours_ = UniqueFd{ends[1]};
  }
  [[nodiscard]] StreamChannel channel(std::chrono::milliseconds patience) const {
    return {ours_.get(), patience, stop_};
  }
  void say(std::string_view text) const {
    EXPECT_EQ(send(qemu_.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }

  UniqueFd qemu_, ours_;
  std::atomic<bool> stop_{false};
  std::array<std::byte, 16> piece_{};
};

TEST_F(StreamChannelTest, WhatComesIsReceivedUntilTheEnd) {
  say("abc");
  EXPECT_EQ(channel(10s).receive(piece_).value(), 3U);
  qemu_ = UniqueFd{};
  EXPECT_EQ(channel(10s).receive(piece_).value(), 0U);
}

TEST_F(StreamChannelTest, ASilentQemuIsNotWaitedForWithoutEnd) {
  const auto error = channel(20ms).receive(piece_).error();
  EXPECT_EQ(error.errnum, ETIMEDOUT);
  EXPECT_THAT(error.what, HasSubstr("nothing of its state for 0.02 s"));
}

TEST_F(StreamChannelTest, NeitherIsOneThatFallsSilentInTheMiddle) {
  say("QEVM");  // a stream's first word
  EXPECT_EQ(FrozenMemory::take(channel(20ms), 0, std::nullopt).error().errnum, ETIMEDOUT);
  say("what nobody can take");
  EXPECT_EQ(channel(20ms).hear_out().error().errnum, ETIMEDOUT);
}

TEST_F(StreamChannelTest, AStopIsNoticedInASilenceButNotAmidTheStream) {
  stop_ = true;
  say("abc");
  EXPECT_EQ(channel(1h).receive(piece_).value(), 3U);
  EXPECT_EQ(channel(1h).receive(piece_).error().errnum, ECANCELED);
}

TEST_F(StreamChannelTest, AStreamThatCannotBeTakenIsHeardToItsEnd) {
  const std::vector<char> much(1 << 17);
  say({much.data(), much.size()});
  qemu_ = UniqueFd{};
  EXPECT_TRUE(channel(10s).hear_out());
  EXPECT_EQ(channel(10s).receive(piece_).value(), 0U);
}

}  // namespace
}  // namespace snowfabric::testing
