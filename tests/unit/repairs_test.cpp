// SPDX-License-Identifier: BSD-3-Clause
// What hosts do for each other while the server is silent.
#include "fabric/repairs.hpp"

#include <map>
#include <set>

#include <gmock/gmock.h>

#include "fabric/crc32c.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::Parsed;
using test::TestClient;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using wire::FrameType;

constexpr std::uint64_t kPages = 1024;
constexpr std::uint64_t kSibling = 99;

/// A host's pages; the bytes are those of test::page_bytes().
class FakeShelf final : public RepairSource {
 public:
  std::map<std::uint64_t, std::vector<std::byte>> pages;
  std::set<std::uint64_t> zeros;
  void put(std::uint64_t gfn) {
    const auto bytes = test::page_bytes(gfn);
    pages[gfn].assign(bytes.begin(), bytes.end());
  }
  [[nodiscard]] bool knows(Gfn page) const noexcept override {
    return pages.contains(page.value) || zeros.contains(page.value);
  }
  [[nodiscard]] std::optional<std::span<const std::byte, kPageSize>> bytes(
      Gfn page) const noexcept override {
    const auto found = pages.find(page.value);
    if (found == pages.end()) return std::nullopt;
    return std::span{found->second}.first<kPageSize>();
  }
  [[nodiscard]] PageRange zero_run(Gfn page) const noexcept override {
    PageRange run{page, 1};
    for (; zeros.contains(run.first.value - 1); ++run.nb_pages) --run.first.value;
    while (zeros.contains(run.first.value + run.nb_pages)) ++run.nb_pages;
    return run;
  }
};

/// What a sibling of this client asks the group for.
Parsed sibling_request(const TestClient& client, const std::vector<wire::WantEntry>& wants) {
  return test::made_by([&](auto out) {
    return wire::write_request(
        out, client.server, group_address(client.server.image_id), test::mac_of(kSibling),
        {.client_id = kSibling, .report = test::report(0)}, wants, wire::kFlagSibling);
  });
}

struct RepairsTest : testing::Test {
  void SetUp() override {
    client.join(kPages);
    repairs.serve(&shelf);
  }
  void asked(const std::vector<wire::WantEntry>& wants) {
    const Parsed request = sibling_request(client, wants);
    ASSERT_EQ(client.give(request), wire::Drop::kNone);
    repairs.on_request(request.frame, client.now);
  }
  /// A PAGE comes to all or by unicast.
  void page_came(std::uint64_t gfn, std::uint8_t flags, const test::PagePart& part) {
    const Parsed page = test::page_frame(client.server, test::mac_of(kSibling), gfn, part, flags);
    repairs.on_page(page.frame, client.now);
  }
  void page_came(std::uint64_t gfn, std::uint8_t flags) {
    page_came(gfn, flags, {test::page_bytes(gfn)});
  }
  static wire::WantEntry want(std::uint64_t first, std::uint16_t nb_pages = 1,
                              std::uint8_t flags = 0) {
    return {.first = first,
            .nb_pages = nb_pages,
            .priority = 0,
            .flags = flags,
            .fragments = 0,
            .reserved = {}};
  }
  /// All that is sent within a time.
  std::vector<Parsed> sent(Nanos within = 20ms) {
    std::vector<Parsed> frames;
    std::array<std::byte, wire::kMaxFrameBytes> out;
    for (const Nanos end = client.now + within; client.now < end; client.now += 20us)
      while (const std::size_t size = repairs.next(out, client.now))
        frames.emplace_back(test::Bytes{out.begin(), out.begin() + size});
    return frames;
  }
  std::vector<std::uint64_t> sent_pages(Nanos within = 20ms) {
    std::vector<std::uint64_t> pages;
    for (const Parsed& frame : sent(within))
      if (frame.frame.type == FrameType::kPage) pages.push_back(frame.frame.page.gfn.host());
    return pages;
  }

  TestClient client;
  FakeShelf shelf;
  Repairs repairs{client.engine};
};

TEST_F(RepairsTest, APageThatIsHereIsSentToAllWithTheSiblingFlag) {
  shelf.put(5);
  asked({want(5)});
  const auto frames = sent();
  ASSERT_THAT(frames, SizeIs(1));
  wire::EthHdr eth;
  std::memcpy(&eth, frames[0].bytes.data(), sizeof eth);
  EXPECT_EQ(eth.dst, group_address(client.server.image_id));
  const wire::Frame& page = frames[0].frame;
  EXPECT_EQ(page.type, FrameType::kPage);
  EXPECT_EQ(page.flags, wire::kFlagSibling);
  EXPECT_EQ(page.page.gfn.host(), 5U);
  EXPECT_TRUE(std::ranges::equal(page.tail, test::page_bytes(5)));
  EXPECT_EQ(page.page.crc32c.host(), crc32c(page.tail));
  EXPECT_EQ(client.stats.tx_repairs.read(), 1U);
}

TEST_F(RepairsTest, OfWhatIsNotHereNothingIsSaid) {
  shelf.put(5);
  asked({want(4), want(6), want(kPages - 1, 100), want(kPages + 7)});
  EXPECT_THAT(sent(), IsEmpty());
}

TEST_F(RepairsTest, WithoutASourceNothingIsAnswered) {
  repairs.serve(nullptr);
  asked({want(5)});
  EXPECT_THAT(sent(), IsEmpty());
}

TEST_F(RepairsTest, ZeroPagesAreNamedAsOneRun) {
  shelf.zeros = {10, 11, 12};
  asked({want(10, 3)});
  const auto frames = sent();
  ASSERT_THAT(frames, SizeIs(1));
  EXPECT_EQ(frames[0].frame.type, FrameType::kZeros);
  EXPECT_EQ(frames[0].frame.flags, wire::kFlagSibling);
  const PageRange range = frames[0].frame.range(0);
  EXPECT_LE(range.first.value, 12U);
  EXPECT_EQ(range.first.value + range.nb_pages, 13U);
}

TEST_F(RepairsTest, WhatAnotherSendsMeanwhileIsLeftToIt) {
  shelf.put(5);
  shelf.put(6);
  asked({want(5, 2)});
  page_came(5, 0);  // by unicast: others have not got it
  page_came(5, wire::kFlagSequenced);
  EXPECT_THAT(sent_pages(), ElementsAre(6));
  EXPECT_EQ(client.stats.repairs_left.read(), 1U);
}

TEST_F(RepairsTest, WhatWasJustSentIsSentAgainOnlyToARetry) {
  shelf.put(5);
  asked({want(5)});
  EXPECT_THAT(sent_pages(Repairs::kSpread), ElementsAre(5));
  asked({want(5)});
  EXPECT_THAT(sent_pages(600us), IsEmpty());
  asked({want(5, 1, wire::kWantRetry)});
  EXPECT_THAT(sent_pages(), ElementsAre(5));
  client.now += Repairs::kSpread;
  asked({want(5)});
  EXPECT_THAT(sent_pages(), ElementsAre(5));
}

TEST_F(RepairsTest, WhatASiblingSentIsNotSentAgainThoughNobodyHadAskedHereYet) {
  shelf.put(5);
  page_came(5, wire::kFlagSibling);
  asked({want(5)});
  EXPECT_THAT(sent_pages(), IsEmpty());
}

TEST_F(RepairsTest, AFalsePageSilencesNobody) {
  shelf.put(5);
  shelf.put(6);
  shelf.zeros = {7};
  asked({want(5, 3)});
  page_came(5, wire::kFlagSibling, {test::page_bytes(6)});
  page_came(6, wire::kFlagSequenced, {test::page_bytes(5)});
  page_came(7, wire::kFlagSibling, {test::page_bytes(5)});
  const auto frames = sent();
  EXPECT_THAT(frames, SizeIs(3));
  EXPECT_EQ(client.stats.repairs_left.read(), 0U);
}

TEST_F(RepairsTest, NorDoesAFalseChecksumOrAFalsePartOfAPage) {
  shelf.put(5);
  asked({want(5)});
  const test::PagePart right{.bytes = test::page_bytes(5), .fragment = 1, .nb_fragments = 3};
  test::PagePart wrong = right;
  ++wrong.checksum;
  page_came(5, wire::kFlagSibling, wrong);
  wrong = right;
  wrong.bytes[wire::fragment_stride(3)] ^= std::byte{1};
  page_came(5, wire::kFlagSibling, wrong);
  EXPECT_EQ(client.stats.repairs_left.read(), 0U);
  page_came(5, wire::kFlagSibling, right);
  EXPECT_EQ(client.stats.repairs_left.read(), 1U);
  EXPECT_THAT(sent(), IsEmpty());
}

TEST_F(RepairsTest, ZerosCountWhereTheyAreTrue) {
  shelf.put(5);
  shelf.zeros = {6};
  shelf.pages[7].assign(kPageSize, std::byte{0});  // as a server sends it that has not looked yet
  asked({want(5, 3)});
  repairs.on_zeros({Gfn{0}, 16}, wire::kFlagSibling, client.now);
  EXPECT_EQ(client.stats.repairs_left.read(), 0U);
  repairs.on_zeros({Gfn{6}, 2}, wire::kFlagSibling, client.now);
  EXPECT_EQ(client.stats.repairs_left.read(), 2U);
  EXPECT_THAT(sent_pages(), ElementsAre(5));
}

TEST_F(RepairsTest, ARetryThatComesAtOnceFindsThePageUnderWay) {
  shelf.put(5);
  asked({want(5)});
  client.now += Repairs::kSpread;
  std::array<std::byte, wire::kMaxFrameBytes> out;
  ASSERT_NE(repairs.next(out, client.now), 0U);
  client.now += Repairs::kUnderWay - 1ns;
  asked({want(5, 1, wire::kWantRetry)});
  EXPECT_EQ(repairs.deadline(), Nanos::max());
}

TEST_F(RepairsTest, ADemandFindsRoomAmongPrefetchesAndGoesFirst) {
  for (std::uint64_t gfn = 0; gfn < kPages; ++gfn) shelf.put(gfn);
  wire::WantEntry more = want(0, 256);
  more.priority = static_cast<std::uint8_t>(wire::Priority::kPrefetch);
  asked({more});
  client.now += Repairs::kSpread;
  asked({want(700)});
  client.now += Repairs::kSpread;
  EXPECT_EQ(sent_pages(1ms).at(0), 700U);
}

TEST_F(RepairsTest, FramesOfSiblingsCountInTheSpacing) {
  shelf.put(5);
  asked({want(5)});
  client.now += Repairs::kSpread;
  page_came(9, wire::kFlagSibling);
  EXPECT_EQ(repairs.deadline(), client.now + Repairs::kSpacing);
}

TEST_F(RepairsTest, HostsDoNotAnswerAllAtOnce) {
  shelf.put(5);
  std::set<Nanos> times;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    ClientConfig config = TestClient::defaults();
    config.seed = seed;
    TestClient other{config};
    other.join(kPages);
    Repairs theirs{other.engine};
    theirs.serve(&shelf);
    const Parsed request = sibling_request(client, {want(5)});
    theirs.on_request(request.frame, client.now);
    times.insert(theirs.deadline() - client.now);
  }
  EXPECT_THAT(times, SizeIs(8));
  EXPECT_LE(*times.rbegin(), Repairs::kSpread);
  EXPECT_GE(*times.rbegin() - *times.begin(), Repairs::kSpread / 3);
}

TEST_F(RepairsTest, FramesAreSpacedAndWhatIsTakenNoteOfIsBounded) {
  for (std::uint64_t gfn = 0; gfn < kPages; ++gfn) shelf.put(gfn);
  asked({want(0, 256), want(256, 256), want(512, 256)});
  std::array<std::byte, wire::kMaxFrameBytes> out;
  client.now += Repairs::kSpread;
  EXPECT_NE(repairs.next(out, client.now), 0U);
  EXPECT_EQ(repairs.next(out, client.now), 0U);
  EXPECT_EQ(repairs.next(out, client.now + Repairs::kSpacing - 1ns), 0U);
  EXPECT_NE(repairs.next(out, client.now + Repairs::kSpacing), 0U);
  client.now += Repairs::kSpacing;
  EXPECT_THAT(sent_pages(50ms), SizeIs(Repairs::kMaxPages - 2));
}

TEST_F(RepairsTest, WhereThePageFrameDoesNotFitNothingIsSent) {
  shelf.put(5);
  asked({want(5)});
  client.now += Repairs::kSpread;
  std::array<std::byte, 1514> small;
  EXPECT_EQ(repairs.next(small, client.now), 0U);
  EXPECT_EQ(repairs.deadline(), Nanos::max());
}

TEST_F(RepairsTest, APageInFragmentsIsSentWhole) {
  TestClient narrow{[] {
    ClientConfig config = TestClient::defaults();
    config.mtu_bytes = 1500;
    return config;
  }()};
  narrow.join(kPages, 1500);
  Repairs theirs{narrow.engine};
  theirs.serve(&shelf);
  shelf.put(5);
  const Parsed request = sibling_request(narrow, {want(5)});
  theirs.on_request(request.frame, narrow.now);
  std::array<std::byte, wire::kMaxFrameBytes> out;
  std::vector<std::byte> page;
  for (unsigned i = 0; i < 3; ++i) {
    narrow.now += Repairs::kSpread;
    const std::size_t size = theirs.next(out, narrow.now);
    ASSERT_NE(size, 0U);
    const Parsed part{test::Bytes{out.begin(), out.begin() + size}};
    EXPECT_EQ(part.frame.page.fragment, i);
    EXPECT_LE(size, 1514U);
    page.insert(page.end(), part.frame.tail.begin(), part.frame.tail.end());
  }
  EXPECT_TRUE(std::ranges::equal(page, test::page_bytes(5)));
  EXPECT_EQ(theirs.next(out, narrow.now + 1s), 0U);
}

}  // namespace
}  // namespace snowfabric
