// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/wire.hpp"

#include <array>
#include <cstring>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include "tests/unit/wire_encode.hpp"
#include "tests/unit/wire_frames.hpp"

namespace snowfabric::wire {
namespace {

using namespace test_frames;

// --- round trips -------------------------------------------------------------------------------

TEST(Wire, EveryWrittenFrameParsesAndWritesAgainTheSame) {
  for (const Bytes& bytes : frames_of_all_kinds()) {
    Frame frame;
    ASSERT_EQ(parse_exact(bytes, bytes.size() - sizeof(EthHdr), frame), Drop::kNone);
    EXPECT_EQ(frame.image_id, kId.image_id);
    EXPECT_EQ(frame.epoch, kId.epoch);
    EXPECT_EQ(frame.incarnation, kId.incarnation);
    EXPECT_EQ(frame.space, kId.space);
    EthHdr eth;
    std::memcpy(&eth, bytes.data(), sizeof eth);
    EXPECT_EQ(eth.type.host(), kEtherType);
    EXPECT_EQ(test::encode(frame, eth.dst, eth.src), bytes);
  }
}

TEST(Wire, PageCarriesItsFieldsAndData) {
  const Bytes bytes = page_frame(2, 3);
  Frame frame;
  ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), frame), Drop::kNone);
  EXPECT_EQ(frame.type, FrameType::kPage);
  EXPECT_EQ(frame.flags, kFlagSequenced);
  EXPECT_EQ(frame.seq, 99U);
  EXPECT_EQ(frame.page.gfn.host(), 0x42U);
  EXPECT_EQ(frame.page.crc32c.host(), 0xdeadbeefU);
  EXPECT_EQ(frame.page.fragment, 2);
  EXPECT_EQ(frame.page.nb_fragments, 3);
  EXPECT_EQ(frame.tail.size(), 1360U);
  EXPECT_EQ(frame.tail.back(), std::byte{'p'});
}

TEST(Wire, APairGivesItsPagesOneAfterTheOther) {
  const Bytes bytes = pair_frame();
  EXPECT_EQ(bytes.size(), kMaxFrameBytes);
  Frame frame;
  ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), frame), Drop::kNone);
  EXPECT_EQ(frame.highest_gfn(), 0x42U);
  EXPECT_EQ(frame.page.gfn.host(), 0x42U);
  EXPECT_EQ(frame.tail.size(), kPageSize);
  EXPECT_EQ(frame.tail.back(), std::byte{'p'});
  ASSERT_TRUE(frame.next_page());
  EXPECT_EQ(frame.page.gfn.host(), 0x17U);
  EXPECT_EQ(frame.page.crc32c.host(), 0xfeedf00dU);
  EXPECT_EQ(frame.tail.size(), kPageSize);
  EXPECT_EQ(frame.tail.front(), std::byte{'q'});
  EXPECT_FALSE(frame.next_page());
}

TEST(Wire, AFrameOfOnePageHasNoOther) {
  const Bytes two = pair_frame(), bytes = page_frame(0, 1);
  Frame frame;
  ASSERT_EQ(parse(std::span{two}.subspan(sizeof(EthHdr)), frame), Drop::kNone);
  ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), frame), Drop::kNone);
  EXPECT_EQ(frame.highest_gfn(), 0x42U);
  EXPECT_FALSE(frame.next_page());
}

TEST(Wire, RequestCarriesReportAndWants) {
  const std::array wants{want(7, 1, Priority::kDemand, kWantRetry, 0b101),
                         want(0x1000, 256, Priority::kPrefetch)};
  const Bytes bytes = request_frame(wants);
  Frame frame;
  ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), frame), Drop::kNone);
  EXPECT_EQ(frame.request.client_id.host(), 0xabcU);
  EXPECT_EQ(frame.request.report.rx_bytes.host(), 1ULL << 40U);
  EXPECT_EQ(frame.request.report.rx_frames.host(), ~0U);
  ASSERT_EQ(frame.nb_wants(), 2U);
  EXPECT_EQ(frame.want(0).first.host(), 7U);
  EXPECT_EQ(frame.want(0).flags, kWantRetry);
  EXPECT_EQ(frame.want(0).fragments, 0b101);
  EXPECT_EQ(frame.want(1).nb_pages.host(), 256);
  EXPECT_EQ(frame.want(1).priority, static_cast<std::uint8_t>(Priority::kPrefetch));
}

TEST(Wire, LargestRequestAndRangesFitTheirBufferAndParse) {
  const std::vector<WantEntry> wants(kMaxWants, want(5, kMaxWantPages));
  const std::vector<PageRange> ranges(kMaxRanges, PageRange{Gfn{9}, kMaxRangePages});
  EXPECT_LE(request_frame(wants).size(), sizeof(ControlBuffer));
  EXPECT_LE(range_frame(FrameType::kZeros, ranges).size(), sizeof(ControlBuffer));
  EXPECT_EQ(verdict(request_frame(wants)), Drop::kNone);
  EXPECT_EQ(verdict(range_frame(FrameType::kZeros, ranges)), Drop::kNone);
}

TEST(Wire, IgnoresTrailingEthernetPaddingWhateverItHolds) {
  for (Bytes bytes : frames_of_all_kinds()) {
    Frame plain, padded;
    ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), plain), Drop::kNone);
    const Bytes tail(plain.tail.begin(), plain.tail.end());
    bytes.resize(bytes.size() + 46, std::byte{0xee});
    ASSERT_EQ(parse(std::span{bytes}.subspan(sizeof(EthHdr)), padded), Drop::kNone);
    EXPECT_EQ(Bytes(padded.tail.begin(), padded.tail.end()), tail);
  }
}

TEST(Wire, IgnoresUnknownFlagsAndReservedBytes) {
  EXPECT_EQ(verdict(with(hello_frame(), offsetof(Header, flags), 0xfe)), Drop::kNone);
  EXPECT_EQ(verdict(with(hello_frame(), kBody + offsetof(HelloBody, reserved), 1)), Drop::kNone);
  EXPECT_EQ(verdict(with(welcome_frame(), kBody + offsetof(WelcomeBody, reserved), 1)),
            Drop::kNone);
  EXPECT_EQ(verdict(with(page_frame(0, 8), kBody + offsetof(PageBody, reserved), 1)), Drop::kNone);
  const std::array wants{want(7, 1)};
  const std::size_t entry = kBody + sizeof(RequestBody);
  EXPECT_EQ(verdict(with(request_frame(wants), entry + offsetof(WantEntry, flags), 0xfe)),
            Drop::kNone);
  EXPECT_EQ(verdict(with(request_frame(wants), entry + offsetof(WantEntry, reserved), 1)),
            Drop::kNone);
}

// --- one test for each verdict -----------------------------------------------------------------

TEST(WireDrop, TruncatedHeaderOrPayload) {
  Frame frame;
  EXPECT_EQ(parse({}, frame), Drop::kTruncated);
  Bytes bytes = bye_frame();
  bytes.pop_back();
  EXPECT_EQ(verdict(bytes), Drop::kTruncated);
  EXPECT_EQ(verdict(with(bye_frame(), offsetof(Header, payload_len), 0xff)), Drop::kTruncated);
}

TEST(WireDrop, BadMagic) {
  EXPECT_EQ(verdict(with(hello_frame(), 0, 0x54)), Drop::kBadMagic);
  EXPECT_EQ(verdict(with(hello_frame(), 1, 0)), Drop::kBadMagic);
}

TEST(WireDrop, EveryOtherVersionBeforeAnythingBehindItIsRead) {
  for (unsigned version = 0; version < 256; ++version) {
    if (version == kVersion) continue;
    Bytes bytes = with(bye_frame(), offsetof(Header, version), static_cast<std::uint8_t>(version));
    EXPECT_EQ(verdict(bytes), Drop::kBadVersion);
    EXPECT_EQ(verdict(with(bytes, offsetof(Header, type), 0xff)), Drop::kBadVersion);
    EXPECT_EQ(verdict(with(bytes, offsetof(Header, payload_len), 0xff)), Drop::kBadVersion);
  }
}

TEST(WireDrop, EveryUnknownType) {
  for (unsigned type = 0; type < 256; ++type) {
    if (type >= 1 && type <= 7) continue;
    EXPECT_EQ(verdict(with(bye_frame(), offsetof(Header, type), static_cast<std::uint8_t>(type))),
              Drop::kBadType);
  }
}

TEST(WireDrop, LengthThatTheTypeCannotHave) {
  const std::array wants{want(1, 1)};
  const std::array ranges{PageRange{Gfn{0}, 1}};
  const std::vector<Bytes> frames{hello_frame(),
                                  welcome_frame(),
                                  bye_frame(),
                                  request_frame(wants),
                                  page_frame(0, 1),
                                  page_frame(2, 3),
                                  range_frame(FrameType::kZeros, ranges),
                                  range_frame(FrameType::kAbsent, ranges)};
  for (const Bytes& bytes : frames) {
    EXPECT_EQ(verdict(resized(bytes, +1)), Drop::kBadLength);
    EXPECT_EQ(verdict(resized(bytes, -1)), Drop::kBadLength);
  }
  EXPECT_EQ(verdict(range_frame(FrameType::kZeros, {})), Drop::kBadLength);
}

TEST(WireDrop, OneEntryMoreThanTheBound) {
  Bytes request = request_frame(std::vector(kMaxWants, want(1, 1)));
  EXPECT_EQ(verdict(resized(request, sizeof(WantEntry))), Drop::kBadLength);
  Bytes zeros = range_frame(FrameType::kZeros, std::vector(kMaxRanges, PageRange{Gfn{0}, 1}));
  EXPECT_EQ(verdict(resized(zeros, sizeof(RangeEntry))), Drop::kBadLength);
}

TEST(WireDrop, WantOutsideItsBounds) {
  const auto of = [](const WantEntry& entry) { return verdict(request_frame({&entry, 1})); };
  constexpr std::uint64_t kEnd = ~std::uint64_t{0};
  EXPECT_EQ(of(want(1, 0)), Drop::kBadField);
  EXPECT_EQ(of(want(1, kMaxWantPages)), Drop::kNone);
  EXPECT_EQ(of(want(1, kMaxWantPages + 1)), Drop::kBadField);
  EXPECT_EQ(of(want(kEnd - 2, 2)), Drop::kNone);
  EXPECT_EQ(of(want(kEnd - 1, 2)), Drop::kBadField);  // its end would wrap
  EXPECT_EQ(of(want(1, 1, Priority{2})), Drop::kBadField);
  EXPECT_EQ(of(want(1, 1, Priority::kDemand, 0, 0xff)), Drop::kNone);
  EXPECT_EQ(of(want(1, 2, Priority::kDemand, 0, 1)), Drop::kBadField);
}

TEST(WireDrop, SecondWantIsCheckedAsTheFirst) {
  const std::array wants{want(1, 1), want(1, 0)};
  EXPECT_EQ(verdict(request_frame(wants)), Drop::kBadField);
}

TEST(WireDrop, RangeOutsideItsBounds) {
  const auto of = [](std::uint64_t first, std::uint32_t nb_pages) {
    const std::array ranges{PageRange{Gfn{0}, 1}, PageRange{Gfn{first}, nb_pages}};
    return verdict(range_frame(FrameType::kAbsent, ranges));
  };
  constexpr std::uint64_t kEnd = ~std::uint64_t{0};
  EXPECT_EQ(of(5, 0), Drop::kBadField);
  EXPECT_EQ(of(5, kMaxRangePages), Drop::kNone);
  EXPECT_EQ(of(5, kMaxRangePages + 1), Drop::kBadField);
  EXPECT_EQ(of(kEnd - 2, 2), Drop::kNone);
  EXPECT_EQ(of(kEnd - 1, 2), Drop::kBadField);  // its end would wrap
}

TEST(WireDrop, FragmentOutsideItsBounds) {
  const std::size_t fragment = kBody + offsetof(PageBody, fragment);
  const std::size_t nb_fragments = kBody + offsetof(PageBody, nb_fragments);
  EXPECT_EQ(verdict(with(page_frame(0, 3), nb_fragments, 0)), Drop::kBadField);
  EXPECT_EQ(verdict(with(page_frame(0, 3), nb_fragments, 9)), Drop::kBadField);
  EXPECT_EQ(verdict(with(page_frame(0, 3), fragment, 3)), Drop::kBadField);
  EXPECT_EQ(verdict(with(page_frame(0, 3), fragment, 2)), Drop::kBadLength);  // the last is shorter
}

TEST(WireDrop, APairOfAnythingButWholePages) {
  const std::size_t second = kBody + sizeof(PageBody);
  EXPECT_EQ(verdict(with(pair_frame(), kBody + offsetof(PageBody, nb_fragments), 2)),
            Drop::kBadLength);
  EXPECT_EQ(verdict(with(pair_frame(), second + offsetof(PageBody, nb_fragments), 2)),
            Drop::kBadField);
  EXPECT_EQ(verdict(with(pair_frame(), second + offsetof(PageBody, fragment), 1)), Drop::kBadField);
  EXPECT_EQ(verdict(resized(pair_frame(), 1)), Drop::kBadLength);
}

TEST(WireDrop, ClientIdZeroExceptInBye) {
  for (const Bytes& good : {hello_frame(), request_frame({})}) {
    Bytes bytes = good;
    std::memset(bytes.data() + sizeof(EthHdr) + kBody, 0, sizeof(Be64));
    EXPECT_EQ(verdict(bytes), Drop::kBadField);
  }
  EXPECT_EQ(verdict(bye_frame(0)), Drop::kNone);
}

TEST(WireDrop, WelcomeOutsideItsBounds) {
  const auto of = [](const std::function<void(WelcomeBody&)>& change) {
    WelcomeBody body = welcome_body();
    change(body);
    return verdict(
        made_by([&](auto out) { return write_welcome(out, kId, kClient, kServer, body); }));
  };
  EXPECT_EQ(of([](WelcomeBody& b) { b.nb_fragments = 0; }), Drop::kBadField);
  EXPECT_EQ(of([](WelcomeBody& b) { b.nb_fragments = kMaxFragments + 1; }), Drop::kBadField);
  EXPECT_EQ(of([](WelcomeBody& b) { b.nb_pages = 0U; }), Drop::kBadField);
  EXPECT_EQ(of([](WelcomeBody& b) { b.nb_pages = 0xffffffffU; }), Drop::kNone);
  EXPECT_EQ(of([](WelcomeBody& b) { b.nb_pages = 0x100000000U; }), Drop::kBadField);
  EXPECT_EQ(of([](WelcomeBody& b) { b.report_interval_us = 0U; }), Drop::kBadField);
}

// --- fragments ---------------------------------------------------------------------------------

TEST(WireFragments, CoverThePageOnceInOrderWithAlignedBorders) {
  for (std::size_t n = 1; n <= kMaxFragments; ++n) {
    std::size_t next = 0;
    for (std::size_t i = 0; i < n; ++i) {
      EXPECT_EQ(i * fragment_stride(n), next);
      EXPECT_EQ(next % 8, 0U);
      EXPECT_GT(fragment_bytes(i, n), 0U);
      next += fragment_bytes(i, n);
    }
    EXPECT_EQ(next, kPageSize);
  }
}

TEST(WireFragments, AreTheFewestThatFitTheMtu) {
  for (std::size_t mtu = 0; mtu <= 9216; ++mtu) {
    const std::size_t n = fragments_for_mtu(mtu);
    const auto fits = [mtu](std::size_t m) {
      return page_frame(0, m).size() - sizeof(EthHdr) <= mtu;
    };
    if (n == 0) {
      EXPECT_LT(mtu, 556U);
      continue;
    }
    EXPECT_TRUE(fits(n)) << mtu;
    EXPECT_TRUE(n == 1 || !fits(n - 1)) << mtu;
  }
}

TEST(WireFragments, NeedTheMtuThatTheDocumentSays) {
  constexpr std::array<std::size_t, kMaxFragments> kLeastMtu{4140, 2092, 1412, 1068,
                                                             868,  732,  636,  556};
  for (std::size_t n = 1; n <= kMaxFragments; ++n) {
    EXPECT_EQ(fragments_for_mtu(kLeastMtu[n - 1]), n);
    EXPECT_NE(fragments_for_mtu(kLeastMtu[n - 1] - 1), n);
  }
}

TEST(WireFragments, PageWireBytesIsTheSumOfItsFrames) {
  for (std::size_t n = 1; n <= kMaxFragments; ++n) {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += page_frame(i, n).size();
    EXPECT_EQ(page_wire_bytes(n), sum);
  }
}

}  // namespace
}  // namespace snowfabric::wire
