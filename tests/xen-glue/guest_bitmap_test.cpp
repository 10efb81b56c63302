// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/guest_bitmap.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_agent.hpp"

namespace snowfabric::xen::test {
namespace {

using namespace std::chrono_literals;

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 512;
const std::string kNode = "/local/domain/6/data/snowfabric/";

class GuestBitmapTest : public testing::Test {
 protected:
  FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages);
  Domain handle{xen, kDom};
  FakeAgent agent{xen, kDom, kNbPages, Gfn{100}};

  [[nodiscard]] Result<FreeWords> ask() const {
    return ask_free_pages(handle, *announced_bitmap(handle, kNbPages), kNbPages, 20ms, &stop);
  }
  mutable std::atomic<bool> stop{false};
};

TEST_F(GuestBitmapTest, TheAgentsWordsComeBack) {
  agent.free = {Gfn{3}, Gfn{64}, Gfn{511}};
  const auto words = ask();
  ASSERT_TRUE(words) << words.error().what;
  ASSERT_EQ(words->size(), 8U);
  EXPECT_EQ((*words)[0], 8U);
  EXPECT_EQ((*words)[1], 1U);
  EXPECT_EQ((*words)[7], std::uint64_t{1} << 63U);
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(GuestBitmapTest, WhereThereIsNoAgentThereIsNoBitmap) {
  xen.store.erase(kNode + "bitmap");
  const auto none = announced_bitmap(handle, kNbPages);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().errnum, ENOENT);
}

TEST_F(GuestBitmapTest, NonsenseOfAGuestIsRefused) {
  for (const char* text : {"", "x", "1", "1 x 0", "512 1 0", "100 2 0", "18446744073709551615 1 0",
                           "99999999999999999999 1 0", "-1 1 0"}) {
    xen.store[kNode + "bitmap"] = text;
    const auto refused = announced_bitmap(handle, kNbPages);
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().errnum, EPROTO) << text;
  }
  xen.store[kNode + "bitmap"] = "7\n1";
  EXPECT_EQ(announced_bitmap(handle, kNbPages).error().what,
            "data/snowfabric/bitmap of domain 6 = 7?1");
}

TEST_F(GuestBitmapTest, ABitmapThatIsNotWhereTheAgentSaysIsRefused) {
  xen.store[kNode + "bitmap"] = "101 1 0";
  const auto refused = ask();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errnum, EPROTO);
  EXPECT_EQ(refused.error().what, "domain 6 has no bitmap of 512 pages where its agent says");
}

TEST_F(GuestBitmapTest, ARefusalComesWithTheGuestsWords) {
  agent.refusal = "page_poison=1";
  const auto refused = ask();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errnum, ENOTSUP);
  EXPECT_EQ(refused.error().what, "domain 6 does not say what is free: refused page_poison=1");
}

TEST_F(GuestBitmapTest, ASilentGuestTimesOutAndAnAnswerToAnEarlierQuestionIsNone) {
  agent.silent = true;
  EXPECT_EQ(ask().error().errnum, ETIMEDOUT);
  xen.store[kNode + "answer"] = "0123456789abcdef ok";
  EXPECT_EQ(ask().error().errnum, ETIMEDOUT);
  stop = true;
  EXPECT_EQ(ask().error().errnum, ECANCELED);
}

TEST_F(GuestBitmapTest, ResetLeavesNothingOfTheParentsButTheGeometry) {
  std::memset(domain.page(Gfn{100}), 0xff, kPageSize);
  const auto bitmap = GuestBitmap::reset(handle, {Gfn{100}, 1}, kNbPages);
  ASSERT_TRUE(bitmap) << bitmap.error().what;
  sf_bitmap_header header;
  std::memcpy(&header, domain.page(Gfn{100}), sizeof header);
  EXPECT_EQ(header.magic, SF_BITMAP_MAGIC);
  EXPECT_EQ(header.nb_pages, kNbPages);
  EXPECT_NE(header.generation, 0U);
  EXPECT_EQ(bitmap->presence().count(PageState::kAbsent), kNbPages - 1);
  EXPECT_EQ(bitmap->presence().state(Gfn{100}), PageState::kPresent);
  const auto other = GuestBitmap::reset(handle, {Gfn{100}, 1}, kNbPages);
  sf_bitmap_header next;
  std::memcpy(&next, domain.page(Gfn{100}), sizeof next);
  EXPECT_NE(next.generation, header.generation);
}

TEST(GuestBitmap, TakesTheirPagesWithHeaderAndBothPlanes) {
  EXPECT_EQ(bitmap_pages_for(1), 1U);
  EXPECT_EQ(bitmap_pages_for(65'536), 7U);    // 64 + 16,384 + 8,192 bytes
  EXPECT_EQ(bitmap_pages_for(0xf0000), 91U);  // the largest guest: fits a huge page
}

}  // namespace
}  // namespace snowfabric::xen::test
