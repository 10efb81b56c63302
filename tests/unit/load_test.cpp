// SPDX-License-Identifier: BSD-3-Clause
// What `fabric-bench load` decides without a port: who gets a frame, what is replayed.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fabric/crc32c.hpp"
#include "tools/load_control.hpp"
#include "tools/load_members.hpp"
#include "tools/load_replay.hpp"

namespace snowfabric::bench {
namespace {

using namespace std::chrono_literals;

constexpr MacAddr kServer{{0x02, 0, 0, 0, 0, 1}}, kUs{{0x02, 0, 0, 0, 0, 2}};
constexpr std::uint64_t kTrial = 0x0123456789abcdef;
constexpr std::size_t kEth = sizeof(wire::EthHdr);

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

using PageBytes = std::array<std::byte, wire::kPageHeaderBytes + kPageSize>;

PageBytes sequenced(std::uint32_t incarnation, std::uint32_t seq) {
  PageBytes page{};
  wire::write_page_header(page, {.image_id = kTrial, .epoch = 1, .incarnation = incarnation},
                          group_address(kTrial), kServer, Gfn{5}, 0, 0, 1, wire::kFlagSequenced,
                          seq);
  return page;
}

TEST(LoadMembers, AFrameToTheGroupCountsForEachWhoIsIn) {
  LoadMembers members{3, kTrial, 9000, kServer, 1};
  join(members, 0);
  join(members, 2);
  give(members, sequenced(1, 7));
  EXPECT_EQ(members.all()[0]->nb_frames, 1U);
  EXPECT_EQ(members.all()[1]->nb_frames, 0U);  // not in yet
  EXPECT_EQ(members.all()[2]->nb_frames, 1U);
}

TEST(LoadMembers, ASecondCopyDoesNotHideThatAnotherFrameIsLost) {
  LoadMembers members{2, kTrial, 9000, kServer, 1};
  join(members, 0);
  join(members, 1);
  for (const std::uint32_t seq : {0U, 1U, 1U, 3U, 3U}) give(members, sequenced(1, seq));
  EXPECT_EQ(members.all()[0]->nb_frames, 3U);  // of four that were sent
  give(members, sequenced(1, 2));              // late
  EXPECT_EQ(members.all()[0]->nb_frames, 4U);
  EXPECT_EQ(members.all()[1]->nb_frames, 4U);
}

TEST(LoadMembers, AFrameOfAServersOtherLifeDoesNotCount) {
  LoadMembers members{1, kTrial, 9000, kServer, 1};
  join(members, 0);
  EXPECT_EQ(give(members, sequenced(2, 0)), wire::Drop::kNone);
  EXPECT_EQ(members.all()[0]->nb_frames, 0U);
  give(members, sequenced(1, 0));
  EXPECT_EQ(members.all()[0]->nb_frames, 1U);
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
  void arrive_together(LoadReplay& replay, std::uint32_t first, Nanos now) {
    std::vector<std::byte> bytes(wire::kMaxFrameBytes);
    const std::uint32_t crc = crc32c(std::span{bytes}.last(kPageSize));
    wire::write_pair_header(bytes, {.image_id = kTrial, .epoch = 1, .incarnation = 1},
                            group_address(kTrial), kServer, {Gfn{first}, crc},
                            {Gfn{first + 1}, crc}, wire::kFlagSequenced, first);
    wire::Frame frame;
    ASSERT_EQ(wire::parse(std::span{bytes}.subspan(kEth), frame), wire::Drop::kNone);
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

TEST_F(Replay, NobodyWaitsForTheSecondPageOfAFrameThatHasCome) {
  const std::vector<LoadTrace> traces{{7, 8}};
  LoadReplay replay{members, traces, kPages, 1};
  replay.begin(1s);
  arrive_together(replay, 7, 1s + 5ms);
  EXPECT_TRUE(replay.done());
  EXPECT_EQ(replay.nb_touched(), 4U);
  EXPECT_EQ(replay.nb_waits(), 2U);  // of each member for 7
}

TEST_F(Replay, TwoVcpusWaitForOnePage) {
  const std::vector<LoadTrace> traces{{7, 7, 8}};
  LoadReplay replay{members, traces, kPages, 2};
  replay.begin(1s);
  EXPECT_FALSE(asked(0, 8));  // by no vCPU: both wait
  arrive(replay, 7, 1s + 5ms);
  EXPECT_TRUE(asked(0, 8));
  EXPECT_EQ(replay.nb_waits(), 4U);
  arrive(replay, 8, 1s + 6ms);
  EXPECT_TRUE(replay.done());
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
  EXPECT_EQ(replay.nb_bad_crc(), 1U);  // one frame, though both members wait for it
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
  std::filesystem::remove(path);
}

TEST(LoadTraces, AreRefusedBeyondTheLargestImageAndTheMostPages) {
  const std::string path = testing::TempDir() + "load_test.many.pages";
  const auto refused = [&](const std::string& text) {
    std::ofstream{path} << text;
    const auto traces = read_traces(std::vector{path});
    return traces ? 0 : traces.error().errnum;
  };
  const std::string all = fmt::format("0-{}\n", kMaxLoadPages - 1);
  EXPECT_EQ(refused(fmt::format("{}\n", kMaxLoadPages)), EINVAL);
  EXPECT_EQ(refused(all), 0);
  EXPECT_EQ(refused(all + "5\n"), EFBIG);
  std::filesystem::remove(path);
}

TEST(LoadTraces, FromASeedAreRoundedDownToWholeRuns) {
  EXPECT_EQ(make_traces(1, 47, 1024, 5)[0].size(), 32U);
}

}  // namespace
}  // namespace snowfabric::bench
