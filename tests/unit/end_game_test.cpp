// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/end_game.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

constexpr EndGameConfig kConfig{.enter = 0.9, .leave = 0.5};

TEST(EndGame, BeginsAtOneCoverageAndEndsBelowALowerOne) {
  EndGame end_game{kConfig, 100};
  EXPECT_FALSE(end_game.active());
  end_game.update(0.89);
  EXPECT_FALSE(end_game.active());
  end_game.update(0.9);
  EXPECT_TRUE(end_game.active());
  end_game.update(0.5);  // between the two thresholds it stays as it is
  EXPECT_TRUE(end_game.active());
  end_game.update(0.49);
  EXPECT_FALSE(end_game.active());
  end_game.update(0.6);
  EXPECT_FALSE(end_game.active());
}

TEST(EndGame, AMemberIsCreditedWithWhatWentOutSinceItJoined) {
  EndGame end_game{kConfig, 100};
  for (int i = 0; i < 40; ++i) (void)end_game.on_new_multicast();
  const std::uint64_t late = end_game.mark();
  for (int i = 0; i < 20; ++i) (void)end_game.on_new_multicast();
  EXPECT_DOUBLE_EQ(end_game.covered_since(0), 0.6);
  EXPECT_DOUBLE_EQ(end_game.covered_since(late), 0.2);
}

TEST(EndGame, CoverageNeverExceedsTheWholeImage) {
  EndGame end_game{kConfig, 10};
  for (int i = 0; i < 25; ++i) (void)end_game.on_new_multicast();
  EXPECT_DOUBLE_EQ(end_game.covered_since(0), 1);
}

TEST(EndGame, AskingForAnUpdateIsRareInALargeImage) {
  EndGame end_game{kConfig, 1U << 20U};
  unsigned asked = 0;
  for (std::uint32_t i = 0; i < 1U << 20U; ++i) asked += end_game.on_new_multicast() ? 1U : 0U;
  EXPECT_GE(asked, 1000U);
  EXPECT_LE(asked, 1024U);
}

TEST(EndGame, AnImageOfZeroPagesAloneHasNone) {
  EndGame end_game{kConfig, 0};
  end_game.update(end_game.covered_since(0));
  EXPECT_FALSE(end_game.active());
}

}  // namespace
}  // namespace snowfabric
