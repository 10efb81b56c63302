// SPDX-License-Identifier: BSD-3-Clause
// What `fabric-bench load` decides without a port: control frames, the search, who gets a frame.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/crc32c.hpp"
#include "tools/load_control.hpp"
#include "tools/load_members.hpp"
#include "tools/load_replay.hpp"
#include "tools/load_search.hpp"

namespace snowfabric::bench {
namespace {

using namespace std::chrono_literals;

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
  EXPECT_TRUE(refused([](LoadOrder& order) { order.nb_pages = kMaxLoadPages + 1; }));
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

// --- members ---------------------------------------------------------------------------------

std::size_t welcome(std::span<std::byte> out, const LoadMembers& members, std::uint32_t member) {
  return wire::write_welcome(out, {.image_id = kTrial, .epoch = 1, .incarnation = 1},
                             LoadMembers::mac_of(member), kServer,
                             {.client_id = members.all()[member]->engine.config().client_id,
                              .nb_pages = std::uint64_t{100},
                              .report_interval_us = 50'000U,
                              .mtu_bytes = std::uint16_t{9000},
                              .nb_fragments = 1,
                              .reserved = 0});
}

wire::Drop give(LoadMembers& members, std::span<const std::byte> bytes) {
  wire::EthHdr eth;
  wire::Frame frame;
  std::memcpy(&eth, bytes.data(), sizeof eth);
  EXPECT_EQ(wire::parse(bytes.subspan(kEth), frame), wire::Drop::kNone);
  return members.on_frame(frame, eth.dst, eth.src, bytes.size(), 1s);
}

void join(LoadMembers& members, std::uint32_t member) {
  wire::ControlBuffer buffer;
  const std::size_t size = welcome(buffer, members, member);
  EXPECT_EQ(give(members, std::span{buffer}.first(size)), wire::Drop::kNone);
}

TEST(LoadMembers, HaveAddressesOfTheirOwn) {
  const LoadMembers members{kMaxLoadMembers, kTrial, 9000, kServer, 1};
  for (const std::uint32_t member : {0U, 255U, 256U, 999U})
    EXPECT_EQ(members.member_of(LoadMembers::mac_of(member)), member);
  EXPECT_EQ(members.member_of(LoadMembers::mac_of(1000)), std::nullopt);
  EXPECT_EQ(members.member_of(kServer), std::nullopt);
  EXPECT_FALSE(LoadMembers::mac_of(999).is_multicast());
}

TEST(LoadMembers, AFrameToOneIsNobodyElses) {
  LoadMembers members{3, kTrial, 9000, kServer, 1};
  join(members, 1);
  EXPECT_EQ(members.nb_joined(), 1U);
  EXPECT_EQ(members.all()[1]->engine.state(), ClientState::kJoined);
  wire::ControlBuffer buffer;
  const std::size_t size =
      wire::write_bye(buffer, {.image_id = kTrial, .epoch = 1}, kUs, kServer, 0, 0, 0);
  EXPECT_EQ(give(members, std::span{buffer}.first(size)), wire::Drop::kForeignImage);
}

TEST(LoadMembers, AFrameToTheGroupCountsForEachWhoIsIn) {
  LoadMembers members{3, kTrial, 9000, kServer, 1};
  join(members, 0);
  join(members, 2);
  std::array<std::byte, wire::kPageHeaderBytes + kPageSize> page{};
  wire::write_page_header(page, {.image_id = kTrial, .epoch = 1, .incarnation = 1},
                          group_address(kTrial), kServer, Gfn{5}, 0, 0, 1, wire::kFlagSequenced, 7);
  give(members, page);
  EXPECT_EQ(members.all()[0]->nb_frames, 1U);
  EXPECT_EQ(members.all()[1]->nb_frames, 0U);  // not in yet
  EXPECT_EQ(members.all()[2]->nb_frames, 1U);
}

TEST(LoadMembers, GreetInTurnsOfBoundedLength) {
  LoadMembers members{10, kTrial, 9000, kServer, 1};
  wire::ControlBuffer buffer;
  std::size_t nb_hellos = 0;
  for (int turn = 0; turn < 5; ++turn) {
    unsigned nb_looked_at = 4;
    std::size_t nb_sent = 0;
    while (members.next(buffer, nb_looked_at, true, 1s) != 0) ++nb_sent;
    EXPECT_LE(nb_sent, 4U);
    EXPECT_EQ(nb_looked_at, 0U);
    nb_hellos += nb_sent;
  }
  EXPECT_EQ(nb_hellos, 10U);  // one of each: the next is not due yet
}

// --- replay ----------------------------------------------------------------------------------

constexpr std::uint32_t kPages = 100;  // as welcome() says

/// A page whose bytes are all zero, in a frame to the group.
std::vector<std::byte> page_frame(std::uint32_t page) {
  std::vector<std::byte> bytes(wire::kPageHeaderBytes + kPageSize);
  const std::uint32_t crc = crc32c(std::span{bytes}.last(kPageSize));
  wire::write_page_header(bytes, {.image_id = kTrial, .epoch = 1, .incarnation = 1},
                          group_address(kTrial), kServer, Gfn{page}, crc, 0, 1,
                          wire::kFlagSequenced, page);
  return bytes;
}

struct Replay : testing::Test {
  Replay() {
    join(members, 0);
    join(members, 1);
  }
  void arrive(LoadReplay& replay, std::uint32_t page, Nanos now) {
    const auto bytes = page_frame(page);
    wire::Frame frame;
    ASSERT_EQ(wire::parse(std::span{bytes}.subspan(kEth), frame), wire::Drop::kNone);
    members.on_frame(frame, group_address(kTrial), kServer, bytes.size(), now);
    replay.on_page(frame, group_address(kTrial), now);
  }
  [[nodiscard]] bool asked(std::uint32_t member, std::uint32_t page) const {
    return members.all()[member]->engine.in_flight(Gfn{page});
  }
  LoadMembers members{2, kTrial, 9000, kServer, 1};
};

TEST_F(Replay, EachVcpuWaitsForItsPageBeforeItTouchesTheNext) {
  const std::vector<LoadTrace> traces{{7, 8, 9}};
  LoadReplay replay{members, traces, kPages, 2};
  replay.begin(1s);
  EXPECT_TRUE(asked(0, 7) && asked(0, 8) && asked(1, 7));
  EXPECT_FALSE(asked(0, 9));
  arrive(replay, 8, 1s + 5ms);
  EXPECT_TRUE(asked(0, 9) && asked(0, 7));
  arrive(replay, 7, 1s + 6ms);
  EXPECT_FALSE(replay.done());
  arrive(replay, 9, 1s + 20ms);
  EXPECT_TRUE(replay.done());
  EXPECT_EQ(replay.nb_touched(), 6U);
  EXPECT_EQ(replay.nb_waits(), 6U);
  EXPECT_EQ(replay.longest_wait(), 15ms);  // for 9, since 8 came
}

TEST_F(Replay, MembersTakeTracesInTurnsAndKeepWhatOthersAskedFor) {
  const std::vector<LoadTrace> traces{{1, 2}, {3, 1}};
  LoadReplay replay{members, traces, kPages, 1};
  replay.begin(1s);
  EXPECT_TRUE(asked(0, 1) && asked(1, 3));
  arrive(replay, 1, 1s);  // the second has it before it touches it
  arrive(replay, 3, 1s);
  EXPECT_FALSE(asked(1, 1));
  EXPECT_EQ(replay.nb_done(), 1U);
  arrive(replay, 2, 1s);
  EXPECT_TRUE(replay.done());
  EXPECT_EQ(replay.nb_waits(), 3U);
}

TEST_F(Replay, APageWithAWrongChecksumIsNotTaken) {
  const std::vector<LoadTrace> traces{{1}};
  LoadReplay replay{members, traces, kPages, 1};
  replay.begin(1s);
  auto bytes = page_frame(1);
  bytes.back() = std::byte{1};
  wire::Frame frame;
  ASSERT_EQ(wire::parse(std::span{bytes}.subspan(kEth), frame), wire::Drop::kNone);
  replay.on_page(frame, group_address(kTrial), 1s);
  EXPECT_EQ(replay.nb_bad_crc(), 2U);
  EXPECT_EQ(replay.nb_done(), 0U);
}

TEST(LoadTraces, OfOneSeedAreAlikeAndHalfOfEachIsInCommon) {
  const auto traces = make_traces(3, 64, 1024, 5);
  EXPECT_EQ(traces, make_traces(3, 64, 1024, 5));
  EXPECT_NE(traces, make_traces(3, 64, 1024, 6));
  for (const LoadTrace& trace : traces) {
    EXPECT_EQ(trace.size(), 64U);
    EXPECT_EQ(std::ranges::count_if(trace, [](auto page) { return page < 32; }), 32);
    EXPECT_LT(std::ranges::max(trace), 1024U);
  }
  EXPECT_NE(traces[0], traces[1]);
}

TEST(LoadTraces, AreReadAsMemtapRecordsThem) {
  const std::string path = testing::TempDir() + "load_test.pages";
  std::ofstream{path} << "17\n0x20-0x22\n";
  const auto traces = read_traces(std::vector{path});
  ASSERT_TRUE(traces);
  EXPECT_EQ(*traces, (std::vector<LoadTrace>{{17, 32, 33, 34}}));
  std::ofstream{path} << "# nothing\n";
  const auto empty = read_traces(std::vector{path});
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error().errnum, EINVAL);
  std::ofstream{path} << kMaxLoadPages << "\n";
  EXPECT_FALSE(read_traces(std::vector{path}));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace snowfabric::bench
