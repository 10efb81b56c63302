// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/free_pages.hpp"

#include <atomic>
#include <set>

#include <gmock/gmock.h>

#include "tests/unit/fake_server.hpp"

namespace snowfabric::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kPages = 1000;
constexpr Patience kShort{50ms, 300ms};
constexpr Patience kLong{5s, 10s};  // for guests that are not silent, however busy the machine is

/// The token of the host's question.
std::string token_from(FakeServer& guest) {
  const std::string line = guest.hear().first;
  EXPECT_TRUE(line.starts_with("FREE ") && line.ends_with('\n')) << line;
  return line.substr(5, line.size() - 6);
}

/// What a guest is taken for that answers with this; "T" in it is the question's token.
Result<std::vector<FrameRange>> answered(const std::string& text) {
  FakeServer guest{[text](FakeServer& g) {
    std::string answer = text;
    const std::string token = token_from(g);
    for (auto at = answer.find('T'); at != std::string::npos; at = answer.find('T', at + 16))
      answer.replace(at, 1, token);
    g.say(answer);
  }};
  return ask_free_frames(guest.path(), kPages, kLong);
}

Error error_of(const std::string& text) {
  const auto frames = answered(text);
  return frames ? Error{0, "taken"} : frames.error();
}

TEST(FreePages, WhatTheGuestCallsFreeIsReturned) {
  const auto frames = answered("RANGES T 3\n0 1\n1 5\n1048576 200\nEND\n");
  ASSERT_TRUE(frames) << frames.error().what;
  EXPECT_THAT(*frames, ElementsAre(FrameRange{0, 1}, FrameRange{1, 5}, FrameRange{1048576, 200}));
  EXPECT_THAT(answered("RANGES T 0\nEND\n").value(), IsEmpty());
}

TEST(FreePages, AnAnswerMayComeInPieces) {
  FakeServer guest{[](FakeServer& g) {
    const std::string token = token_from(g);
    for (const char c : "RANGES " + token + " 1\n7 3\nEND\n") {
      g.say(std::string(1, c));
      std::this_thread::sleep_for(100us);
    }
  }};
  const auto frames = ask_free_frames(guest.path(), kPages, kShort);
  ASSERT_TRUE(frames) << frames.error().what;
  EXPECT_THAT(*frames, ElementsAre(FrameRange{7, 3}));
}

TEST(FreePages, WhatAnswersAnEarlierQuestionIsPassedOver) {
  // The host before this one went away in the middle of its answer.
  const auto frames = answered(
      "44 2\nEND\nRANGES 0123456789abcdef 1\n5 5\nEND\nREFUSED 0123456789abcdef no\n"
      "ERROR what?\nRANGES T 1\n8 1\nEND\n");
  ASSERT_TRUE(frames) << frames.error().what;
  EXPECT_THAT(*frames, ElementsAre(FrameRange{8, 1}));
}

TEST(FreePages, EachQuestionHasATokenOfItsOwn) {
  std::set<std::string> tokens;
  for (int i = 0; i < 8; ++i) {
    FakeServer guest{[&](FakeServer& g) { tokens.insert(token_from(g)); }};
    EXPECT_FALSE(ask_free_frames(guest.path(), kPages, kShort));
  }
  EXPECT_EQ(tokens.size(), 8U);
}

TEST(FreePages, ARefusalCarriesTheGuestsWords) {
  const Error error = error_of("REFUSED T no \x1b[2J way\n");
  EXPECT_EQ(error.errnum, ENOTSUP);
  EXPECT_THAT(error.what, HasSubstr("no ?[2J way"));
}

TEST(FreePages, AnAnswerThatIsNoneIsRefused) {
  for (const char* text : {"RANGES T x\n",
                           "RANGES T -1\n",
                           "RANGES T 1 \n0 1\nEND\n",
                           "RANGES T 1001\n",
                           "RANGES T 18446744073709551616\n",
                           "RANGES T 1\n0\nEND\n",
                           "RANGES T 1\n0 0\nEND\n",
                           "RANGES T 1\n-1 1\nEND\n",
                           "RANGES T 1\n0 1 \nEND\n",
                           "RANGES T 1\n0  1\nEND\n",
                           "RANGES T 1\n0x1 1\nEND\n",
                           "RANGES T 1\n\nEND\n",
                           "RANGES T 2\n5 2\n6 1\nEND\n",
                           "RANGES T 2\n5 2\n3 1\nEND\n",
                           "RANGES T 1\n1099511627776 1\nEND\n",
                           "RANGES T 1\n1 1099511627776\nEND\n",
                           "RANGES T 1\n1 18446744073709551615\nEND\n",
                           "RANGES T 1\n0 1\n2 1\nEND\n",
                           "RANGES T 2\n0 1\nEND\n",
                           "RANGES T 1\n0 1\nENDE\n"})
    EXPECT_EQ(error_of(text).errnum, EPROTO) << text << error_of(text).what;
}

TEST(FreePages, ALineWithoutEndIsRefused) {
  for (const char* before : {"", "RANGES T 1\n"}) {
    EXPECT_EQ(error_of(before + std::string(512, '1') + "\nEND\n").errnum, EPROTO);
    EXPECT_EQ(error_of(before + std::string(100000, '1')).errnum, EPROTO);
  }
}

TEST(FreePages, AGuestThatEndsInTheMiddleIsToldSo) {
  for (const char* text : {"", "RANGES T", "RANGES T 2\n0 1\n", "RANGES T 1\n0 1\nEN"})
    EXPECT_EQ(error_of(text).errnum, ECONNRESET) << text;
}

TEST(FreePages, ASilentGuestIsNotWaitedFor) {
  for (const char* before : {"", "RANGES ", "noise\n"}) {
    std::atomic<bool> done{false};
    FakeServer silent{[&](FakeServer& g) {
      token_from(g);
      g.say(before);
      done.wait(false);
    }};
    const auto frames = ask_free_frames(silent.path(), kPages, kShort);
    ASSERT_FALSE(frames);
    EXPECT_EQ(frames.error().errnum, ETIMEDOUT);
    done = true;
    done.notify_all();
  }
}

TEST(FreePages, ALargeGuestHasMoreTime) {
  const auto small = patience_with(0), large = patience_with(10 << 18);
  EXPECT_GE(large.silence, small.silence + 10s);
  EXPECT_GE(large.whole, small.whole + 10s);
}

TEST(FreePages, AGuestThatSaysMoreAndMoreIsNotListenedToForEver) {
  FakeServer chatty{[&](FakeServer& g) {
    token_from(g);
    while (g.say("RANGES 0 1\n")) std::this_thread::sleep_for(1ms);
  }};
  const auto frames = ask_free_frames(chatty.path(), kPages, kShort);
  ASSERT_FALSE(frames);
  EXPECT_EQ(frames.error().errnum, ETIMEDOUT);
}

TEST(FreePages, APathWithoutAGuestOrTooLongIsAnError) {
  EXPECT_EQ(ask_free_frames("/nonexistent/free", kPages, kShort).error().errnum, ENOENT);
  EXPECT_EQ(ask_free_frames("", kPages, kShort).error().errnum, ENAMETOOLONG);
  EXPECT_EQ(ask_free_frames(std::string(200, 'x'), kPages, kShort).error().errnum, ENAMETOOLONG);
}

const std::vector<RamBlock> kPc{{"pc.ram", 0, 100, 100 * kPageSize},
                                {"pc.bios", 100, 64, 64 * kPageSize}};
const std::vector<RamSpan> kSpans{{{0, 80}, "pc.ram", 0}, {{1048576, 20}, "pc.ram", 80}};

bool never(Gfn /*page*/) { return false; }

TEST(FreePages, APageWrittenSinceIsNotAvoided) {
  const std::vector<FrameRange> frames{{10, 4}, {14, 2}, {30, 1}};
  const auto out = avoidable(frames, kSpans, kPc, 100, [](Gfn page) { return page.value == 11; });
  ASSERT_TRUE(out) << out.error().what;
  EXPECT_THAT(out->ranges,
              ElementsAre(PageRange{Gfn{10}, 1}, PageRange{Gfn{12}, 4}, PageRange{Gfn{30}, 1}));
  EXPECT_EQ(out->nb_pages, 6U);
  EXPECT_EQ(out->nb_free, 7U);
}

TEST(FreePages, AFrameIsThePageThatItsSpanSaysAndNoOther) {
  const std::vector<FrameRange> frames{{78, 10}, {95, 3}, {1048570, 8}, {1048594, 9}};
  const auto out = avoidable(frames, kSpans, kPc, 100, never);
  ASSERT_TRUE(out) << out.error().what;
  EXPECT_THAT(out->ranges, ElementsAre(PageRange{Gfn{78}, 4}, PageRange{Gfn{98}, 2}));
  EXPECT_EQ(out->nb_free, 6U);
}

TEST(FreePages, APageThatTwoFramesShowIsCountedOnce) {
  const std::vector<RamSpan> twice{{{0, 80}, "pc.ram", 0}, {{200, 10}, "pc.ram", 70}};
  const std::vector<FrameRange> frames{{75, 2}, {205, 4}};
  const auto out = avoidable(frames, twice, kPc, 100, never);
  ASSERT_TRUE(out) << out.error().what;
  EXPECT_THAT(out->ranges, ElementsAre(PageRange{Gfn{75}, 4}));
  EXPECT_EQ(out->nb_free, 4U);
}

TEST(FreePages, RamWhoseWritesAreNotKnownIsNotAvoided) {
  const std::vector<FrameRange> frames{{0, 100}};
  const std::vector<RamSpan> bios{{{0, 64}, "pc.bios", 0}};
  const std::vector<RamSpan> other{{{0, 64}, "ram-node0", 0}};
  const std::vector<RamSpan> too_long{{{0, 101}, "pc.ram", 0}, {{200, 10}, "pc.ram", 91}};
  for (const auto& spans : {bios, other, too_long, std::vector<RamSpan>{}})
    EXPECT_EQ(avoidable(frames, spans, kPc, 100, never).error().errnum, ENOTSUP);
}

}  // namespace
}  // namespace snowfabric::testing
