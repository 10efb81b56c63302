// SPDX-License-Identifier: BSD-3-Clause
// What the two ends of `fabric-bench load` say to each other, and the search for a rate.
#include "tools/load_control.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include <gtest/gtest.h>

#include "tools/load_search.hpp"

namespace snowfabric::bench {
namespace {

constexpr MacAddr kServer{{0x02, 0, 0, 0, 0, 1}}, kUs{{0x02, 0, 0, 0, 0, 2}};
constexpr std::uint64_t kTrial = 0x0123456789abcdef;
constexpr std::size_t kEth = sizeof(wire::EthHdr);
using LoadBytes = std::array<std::byte, kLoadFrameBytes>;

LoadFrame start() {
  LoadFrame frame{.type = LoadType::kStart, .trial = kTrial};
  frame.order.kind = static_cast<std::uint8_t>(LoadKind::kThroughput);
  frame.order.millis = 2000U;
  frame.order.bytes_per_s = std::uint64_t{125'000'000};
  frame.order.nb_pages = 4096U;
  frame.order.nb_members = 100U;
  frame.order.mtu_bytes = std::uint16_t{9000};
  return frame;
}

LoadBytes written(const LoadFrame& frame) {
  LoadBytes bytes;
  write_load(bytes, kServer, kUs, frame);
  return bytes;
}

LoadVerdict parsed(std::span<const std::byte> frame, LoadFrame& out) {
  return parse_load(frame.subspan(kEth), out);
}

// --- control frames --------------------------------------------------------------------------

TEST(LoadControl, ReadsBackWhatWasWrittenAndIgnoresPadding) {
  const auto bytes = written(start());
  std::array<std::byte, kLoadFrameBytes + 20> padded{};
  std::ranges::copy(bytes, padded.begin());
  LoadFrame out;
  ASSERT_EQ(parsed(padded, out), LoadVerdict::kGood);
  EXPECT_EQ(out.type, LoadType::kStart);
  EXPECT_EQ(out.trial, kTrial);
  EXPECT_EQ(out.order.bytes_per_s.host(), 125'000'000U);
  EXPECT_EQ(out.order.nb_members.host(), 100U);

  LoadFrame state{.type = LoadType::kState, .trial = kTrial};
  state.report.state = static_cast<std::uint8_t>(LoadState::kDone);
  state.report.answers = static_cast<std::uint8_t>(LoadType::kAsk);
  state.report.nb_frames = std::uint64_t{12345};
  ASSERT_EQ(parsed(written(state), out), LoadVerdict::kGood);
  EXPECT_EQ(out.report.nb_frames.host(), 12345U);
}

TEST(LoadControl, LeavesTheFabricsFramesToTheFabric) {
  auto bytes = written(start());
  bytes[kEth + 1] = std::byte{0x46};  // "SF"
  LoadFrame out;
  EXPECT_EQ(parsed(bytes, out), LoadVerdict::kForeign);
  EXPECT_EQ(parse_load({}, out), LoadVerdict::kForeign);
}

TEST(LoadControl, RefusesEveryLengthThatIsTooShort) {
  const auto bytes = written(start());
  for (std::size_t size = kEth; size < bytes.size(); ++size) {
    LoadFrame out;
    EXPECT_NE(parsed(std::span{bytes}.first(size), out), LoadVerdict::kGood) << size;
  }
}

TEST(LoadControl, RefusesOtherVersionsAndTypes) {
  LoadFrame out;
  auto bytes = written(start());
  bytes[kEth + 2] = std::byte{2};
  EXPECT_EQ(parsed(bytes, out), LoadVerdict::kBad);
  for (const unsigned type : {0U, 5U, 255U}) {
    bytes = written(start());
    bytes[kEth + 3] = static_cast<std::byte>(type);
    EXPECT_EQ(parsed(bytes, out), LoadVerdict::kBad) << type;
  }
}

TEST(LoadControl, RefusesOrdersThatWouldCostTooMuchOrMeanNothing) {
  const auto refused = [](auto&& change) {
    LoadFrame frame = start(), out;
    change(frame.order);
    return parsed(written(frame), out) == LoadVerdict::kBad;
  };
  EXPECT_TRUE(refused([](LoadOrder& order) { order.kind = 0; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.kind = 9; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.millis = 0U; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.millis = kMaxLoadMillis + 1; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.bytes_per_s = std::uint64_t{0}; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.nb_pages = 0U; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.nb_pages = kMaxTrialPages + 1; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.nb_members = kMaxLoadMembers + 1; }));
  EXPECT_TRUE(refused([](LoadOrder& order) { order.mtu_bytes = std::uint16_t{100}; }));
}

TEST(LoadControl, RefusesReportsOfNoKnownStateOrQuestion) {
  LoadFrame state{.type = LoadType::kState, .trial = kTrial}, out;
  EXPECT_EQ(parsed(written(state), out), LoadVerdict::kBad);  // answers nothing
  state.report.answers = static_cast<std::uint8_t>(LoadType::kState);
  EXPECT_EQ(parsed(written(state), out), LoadVerdict::kBad);
  state.report.answers = static_cast<std::uint8_t>(LoadType::kGo);
  state.report.state = 4;
  EXPECT_EQ(parsed(written(state), out), LoadVerdict::kBad);
}

// --- search ----------------------------------------------------------------------------------

/// @return trials that it took @param capacity  above it frames are lost @param port  its most
unsigned search(RateSearch& rates, double capacity, double port) {
  while (const auto offered = rates.next()) {
    const double sent = std::min(*offered, port);
    rates.note(sent, sent > capacity ? 1 - capacity / sent : 0);
  }
  return rates.nb_trials();
}

TEST(RateSearch, FindsTheHighestRateWithoutLossWithinItsPrecision) {
  for (const double capacity : {0.9, 3.7, 55.0, 99.9}) {
    RateSearch rates{100, 0};
    search(rates, capacity, 1000);
    EXPECT_LE(rates.best(), capacity);
    EXPECT_GE(rates.best(), capacity * 0.95 - 0.05) << capacity;
  }
}

TEST(RateSearch, EndsAtOnceWhereThePortIsTheLimit) {
  RateSearch rates{100, 0};
  EXPECT_EQ(search(rates, 50, 20), 1U);
  EXPECT_EQ(rates.best(), 20);
}

TEST(RateSearch, TakesALossWithinTheToleranceForNone) {
  RateSearch strict{100, 0}, mild{100, 0.5};
  search(strict, 50, 1000);
  EXPECT_EQ(search(mild, 50, 1000), 1U);
  EXPECT_LT(strict.best(), 51);
  EXPECT_EQ(mild.best(), 100);
}

TEST(RateSearch, HasNoBestWhereEveryRateLoses) {
  RateSearch rates{100, 0};
  EXPECT_EQ(search(rates, 0, 1000), RateSearch::kMostTrials);
  EXPECT_EQ(rates.best(), 0);
}

TEST(RateSearch, ASenderThatFellShortLaterDoesNotLowerTheCeiling) {
  RateSearch rates{100, 0};
  EXPECT_FALSE(rates.note(80, 0.5));  // the port's most
  ASSERT_EQ(rates.next(), 40);
  EXPECT_FALSE(rates.note(4, 0.1));  // disturbed: nothing is known of 5
  EXPECT_EQ(rates.next(), 20);
}

}  // namespace
}  // namespace snowfabric::bench
