// SPDX-License-Identifier: BSD-3-Clause
#include "sim/frame_text.hpp"

#include <array>

#include <gtest/gtest.h>

#include "fabric/wire.hpp"

namespace snowfabric::sim {
namespace {

using wire::WantEntry;

constexpr wire::Identity kWho{.image_id = 1, .epoch = 2, .incarnation = 3};
constexpr MacAddr kTo{{2, 0, 0, 0, 0, 1}}, kFrom{{2, 0, 0, 0, 0, 2}};

class FrameText : public testing::Test {
 protected:
  /// Behind a header of so many bytes.
  [[nodiscard]] std::string text(std::size_t header_bytes, std::size_t page_bytes = 0) const {
    return to_string(std::span{frame_}.first(header_bytes + page_bytes));
  }
  std::array<std::byte, wire::kMaxFrameBytes> frame_{};
};

TEST_F(FrameText, NamesAPageItsFragmentAndBothOfAPair) {
  EXPECT_EQ(
      text(wire::write_page_header(frame_, kWho, kTo, kFrom, Gfn{17}, 0, 0, 1, 0, 0), kPageSize),
      "page 17");
  EXPECT_EQ(text(wire::write_page_header(frame_, kWho, kTo, kFrom, Gfn{17}, 0, 1, 3, 0, 0),
                 wire::fragment_bytes(1, 3)),
            "page 17 (fragment 2 of 3)");
  EXPECT_EQ(text(wire::write_pair_header(frame_, kWho, kTo, kFrom, {Gfn{4}, 0}, {Gfn{9}, 0}, 0, 0),
                 2 * kPageSize),
            "pages 4 and 9");
}

TEST_F(FrameText, NamesWhatIsAskedForAndHow) {
  constexpr auto kPrefetch = static_cast<std::uint8_t>(wire::Priority::kPrefetch);
  const std::array wants{WantEntry{4, 8, kPrefetch, 0, 0, {}},
                         WantEntry{80, 1, 0, wire::kWantRetry, 0x5, {}}};
  EXPECT_EQ(text(wire::write_request(frame_, kWho, kTo, kFrom, {1, {}}, wants)),
            "asks for 4 to 11 (prefetch), 80 (fragments 0x5) (again)");
  EXPECT_EQ(text(wire::write_request(frame_, kWho, kTo, kFrom, {1, {}}, {})),
            "asks for nothing, reports");
}

TEST_F(FrameText, NamesRangesAndWhoComesAndGoes) {
  const std::array ranges{PageRange{Gfn{1}, 1}, PageRange{Gfn{10}, 20}};
  EXPECT_EQ(
      text(wire::write_ranges(frame_, wire::FrameType::kZeros, kWho, kTo, kFrom, ranges, 0, 0)),
      "zero: 1, 10 to 29");
  EXPECT_EQ(
      text(wire::write_ranges(frame_, wire::FrameType::kAbsent, kWho, kTo, kFrom, ranges, 0, 0)),
      "absent: 1, 10 to 29");
  EXPECT_EQ(text(wire::write_hello(frame_, kWho, kTo, kFrom, {1, 9000, {}})), "says hello");
  EXPECT_EQ(text(wire::write_bye(frame_, kWho, kTo, kFrom, 0, 0, 0)), "says goodbye");
}

TEST_F(FrameText, SaysOfWhatIsNoFrameThatItCannotBeRead) {
  EXPECT_EQ(to_string(std::span{frame_}.first(13)), "a frame that cannot be read");
  EXPECT_EQ(text(wire::kPageHeaderBytes), "a frame that cannot be read");
}

}  // namespace
}  // namespace snowfabric::sim
