// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/page_map.hpp"

#include <map>

#include <gtest/gtest.h>

#include "fabric/base/prng.hpp"

namespace snowfabric {
namespace {

TEST(PageMap, FindsWhatWasPutInAndNothingElse) {
  PageMap map{4};
  map.insert(Gfn{7}, 0);
  map.insert(Gfn{0}, 3);
  EXPECT_EQ(map.find(Gfn{7}), 0U);
  EXPECT_EQ(map.find(Gfn{0}), 3U);
  EXPECT_EQ(map.find(Gfn{8}), PageMap::kNone);
  map.erase(Gfn{7});
  EXPECT_EQ(map.find(Gfn{7}), PageMap::kNone);
  EXPECT_EQ(map.find(Gfn{0}), 3U);
}

TEST(PageMap, HasRoomForOneInTheLeastOfAll) {
  PageMap map{1};
  for (std::uint32_t page = 0; page < 100; ++page) {
    map.insert(Gfn{page}, page);
    EXPECT_EQ(map.find(Gfn{page}), page);
    map.erase(Gfn{page});
  }
}

TEST(PageMap, WhenFullAgreesWithAStdMapOverManyRandomSteps) {
  constexpr std::uint64_t kSeed = 3;
  constexpr std::size_t kRoom = 100;
  Prng prng{kSeed};
  PageMap map{kRoom};
  std::map<std::uint64_t, std::uint32_t> model;
  for (std::uint32_t step = 0; step < 100'000; ++step) {
    const Gfn page{prng.next() % 150};  // neighbours, whose homes collide with those of others
    if (model.contains(page.value)) {
      map.erase(page);
      model.erase(page.value);
    } else if (model.size() < kRoom) {
      map.insert(page, step);
      model[page.value] = step;
    }
    const Gfn other{prng.next() % 150};
    const auto entry = model.find(other.value);
    ASSERT_EQ(map.find(other), entry == model.end() ? PageMap::kNone : entry->second) << step;
  }
}

}  // namespace
}  // namespace snowfabric
