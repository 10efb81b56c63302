// SPDX-License-Identifier: BSD-3-Clause
// One order of `fabric-bench load` at the server's end, in virtual time.
#include "tools/load_trial.hpp"

#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/crc32c.hpp"
#include "tools/load_control.hpp"

namespace snowfabric::bench {
namespace {

using namespace std::chrono_literals;

constexpr MacAddr kServer{{0x02, 0, 0, 0, 0, 1}}, kUs{{0x02, 0, 0, 0, 0, 2}};
constexpr std::uint64_t kTrial = 0x0123456789abcdef;
constexpr std::uint64_t kMegabyte = 1'000'000;
constexpr Nanos kStep = 100us;

LoadOrder order(LoadKind kind, std::uint32_t nb_pages) {
  LoadOrder out{};
  out.kind = static_cast<std::uint8_t>(kind);
  out.millis = 1000U;
  out.bytes_per_s = 10 * kMegabyte;
  out.nb_pages = nb_pages;
  out.mtu_bytes = std::uint16_t{9000};
  return out;
}

LoadState state_of(const LoadTrial& trial) { return static_cast<LoadState>(trial.report().state); }

struct Trial : testing::Test {
  /// Has it send from `now_` until `end`, and keeps the frames' page numbers in `pages`.
  void run(LoadTrial& trial, Nanos end, bool asks = true) {
    for (; now_ < end; now_ += kStep) {
      if (asks) trial.hear(now_);
      ServerTx tx;
      while (trial.next(tx, now_)) take(trial, tx);
      trial.all_sent(now_);
    }
  }
  void take(LoadTrial& trial, const ServerTx& tx) {
    const std::size_t size = trial.write(tx, bytes);
    wire::Frame frame;
    ASSERT_EQ(wire::parse(std::span{bytes}.first(size).subspan(sizeof(wire::EthHdr)), frame),
              wire::Drop::kNone);
    if (frame.type != wire::FrameType::kPage) return;
    EXPECT_EQ(frame.seq, nb_frames++);
    do {
      pages.push_back(frame.page.gfn.host());
      if (frame.page.nb_fragments == 1) {
        EXPECT_EQ(crc32c(frame.tail), frame.page.crc32c.host());
      }
    } while (frame.next_page());
  }
  /// Five pages, again and again, for 100 ms.
  void send_five_bare(std::uint16_t mtu_bytes) {
    LoadTrial trial{kTrial, order(LoadKind::kBare, 5), image, mtu_bytes, kServer};
    trial.go(now_);
    run(trial, now_ + 100ms);
  }
  /// A member says HELLO.
  void greet(LoadTrial& trial) {
    wire::ControlBuffer buffer;
    const std::size_t size = wire::write_hello(
        buffer, {.image_id = kTrial, .epoch = 1}, kServer, kUs,
        {.client_id = std::uint64_t{7}, .mtu_bytes = std::uint16_t{9000}, .reserved = {}});
    wire::Frame frame;
    ASSERT_EQ(wire::parse(std::span{buffer}.first(size).subspan(sizeof(wire::EthHdr)), frame),
              wire::Drop::kNone);
    trial.on_frame(frame, kUs, now_);
  }

  LoadImage image{1};
  std::array<std::byte, wire::kMaxFrameBytes> bytes{};
  std::vector<std::uint64_t> pages;
  std::uint32_t nb_frames = 0;
  Nanos now_ = 1s;
};

TEST_F(Trial, ABareOneKeepsItsRateAndLengthHoweverSmallTheImage) {
  LoadTrial trial{kTrial, order(LoadKind::kBare, 5), image, 9000, kServer};
  run(trial, 2s);
  EXPECT_EQ(nb_frames, 0U);  // nobody has said go
  trial.go(now_);
  run(trial, 2s + 999ms);
  EXPECT_EQ(state_of(trial), LoadState::kRunning);
  run(trial, 5s);
  const LoadReport report = trial.report();
  EXPECT_EQ(state_of(trial), LoadState::kDone);
  EXPECT_EQ(Nanos{static_cast<std::int64_t>(report.nanos.host())}, 1s);
  EXPECT_EQ(report.nb_frames.host(), nb_frames);
  EXPECT_NEAR(static_cast<double>(report.nb_bytes.host()), 10e6, 0.1e6);  // and a bucket's depth
}

TEST_F(Trial, ABareOneSendsPagesInPairsAndTheOddOneAlone) {
  send_five_bare(9000);
  ASSERT_GE(pages.size(), 10U);
  EXPECT_EQ((std::vector(pages.begin(), pages.begin() + 8)),
            (std::vector<std::uint64_t>{0, 1, 2, 3, 4, 0, 1, 2}));
  EXPECT_NEAR(static_cast<double>(pages.size()) / nb_frames, 5.0 / 3, 0.05);
}

TEST_F(Trial, ABareOneSendsFragmentsWhereTheMtuIsSmall) {
  send_five_bare(1500);
  ASSERT_GE(pages.size(), 6U);
  EXPECT_EQ((std::vector(pages.begin(), pages.begin() + 6)),
            (std::vector<std::uint64_t>{0, 0, 0, 1, 1, 1}));
}

TEST_F(Trial, ASecondGoChangesNothing) {
  LoadTrial trial{kTrial, order(LoadKind::kBare, 5), image, 9000, kServer};
  trial.go(now_);
  run(trial, now_ + 600ms);
  trial.go(now_);
  run(trial, now_ + 600ms);
  EXPECT_EQ(state_of(trial), LoadState::kDone);
  trial.go(now_);
  EXPECT_EQ(state_of(trial), LoadState::kDone);
}

TEST_F(Trial, ABareOneThatNobodyAsksAboutEnds) {
  LoadOrder longer = order(LoadKind::kBare, 5);
  longer.millis = 60'000U;
  LoadTrial trial{kTrial, longer, image, 9000, kServer};
  trial.go(now_);
  run(trial, now_ + 10s);
  EXPECT_EQ(state_of(trial), LoadState::kRunning);
  run(trial, now_ + LoadTrial::kSilence + 10ms, false);
  EXPECT_EQ(state_of(trial), LoadState::kDone);
  ServerTx tx;
  EXPECT_FALSE(trial.next(tx, now_));
}

TEST_F(Trial, OfTheProtocolPushesToWhoIsInAndEndsWithTheImage) {
  LoadTrial trial{kTrial, order(LoadKind::kThroughput, 101), image, 9000, kServer};
  greet(trial);
  run(trial, now_ + 200ms);
  EXPECT_TRUE(pages.empty());  // nobody has said go
  trial.go(now_);
  run(trial, now_ + 500ms);
  EXPECT_EQ(state_of(trial), LoadState::kDone);
  ASSERT_EQ(pages.size(), 101U);
  EXPECT_EQ(pages.back(), 100U);
  EXPECT_LT(trial.report().nanos.host(), 100'000'000U);  // 0.4 MB at 10 MB/s, less a burst
}

TEST_F(Trial, OfTheProtocolEndsWithItsTimeThoughNobodyAsks) {
  LoadTrial trial{kTrial, order(LoadKind::kThroughput, 100'000), image, 9000, kServer};
  greet(trial);
  trial.go(now_);
  run(trial, now_ + 1100ms, false);
  EXPECT_EQ(state_of(trial), LoadState::kDone);
  EXPECT_NEAR(static_cast<double>(trial.report().nanos.host()), 1e9, 1e6);
  EXPECT_NEAR(static_cast<double>(trial.report().nb_bytes.host()), 10e6, 0.3e6);
}

TEST(LoadPages, LastAtTheRateOrAreTheMostThatATrialMayHave) {
  EXPECT_GE(pages_for(10e6, 2s), 20'000'000U / kPageSize);
  EXPECT_LE(pages_for(10e6, 2s), 30'000'000U / kPageSize);
  EXPECT_EQ(pages_for(1e15, 60s), kMaxTrialPages);
}

}  // namespace
}  // namespace snowfabric::bench
