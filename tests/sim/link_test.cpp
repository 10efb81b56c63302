// SPDX-License-Identifier: BSD-3-Clause
#include "sim/link.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kFrame = 1000;
const std::vector<std::byte> kBytes(kFrame);

/// Sends that many frames, one each us. @return when they arrived
std::vector<Nanos> send(Link& link, int nb_frames, Prng& prng) {
  std::vector<Nanos> arrivals;
  for (int i = 0; i < nb_frames; ++i)
    link.carry(kBytes, Nanos{i * 1us}, prng, [&](Nanos at, bool) { arrivals.push_back(at); });
  return arrivals;
}

class LinkTest : public testing::Test {
 protected:
  Prng prng{1};
};

TEST_F(LinkTest, FramesFollowEachOtherAtTheRateOfTheLink) {
  Link link{{.delay = 10us, .bytes_per_s = 1e9}};
  const auto arrivals = send(link, 3, prng);
  EXPECT_EQ(arrivals, (std::vector<Nanos>{11us, 12us, 13us}));
  Link slow{{.delay = 0us, .bytes_per_s = 0.5e9}};
  EXPECT_EQ(send(slow, 3, prng), (std::vector<Nanos>{2us, 4us, 6us}));
}

TEST_F(LinkTest, AShapedLinkPassesABurstAtOnceAndTheRestAtItsRate) {
  Link link{{.delay = 0us, .bytes_per_s = 1e8, .burst_bytes = 3 * kFrame}};  // a frame each 10 us
  const auto arrivals = send(link, 6, prng);
  EXPECT_EQ(arrivals, (std::vector<Nanos>{0us, 1us, 2us, 10us, 20us, 30us}));
  std::vector<Nanos> later;
  for (int i = 0; i < 4; ++i)  // a pause has filled the bucket
    link.carry(kBytes, 200us, prng, [&](Nanos at, bool) { later.push_back(at); });
  EXPECT_EQ(later, (std::vector<Nanos>{200us, 200us, 200us, 210us}));
}

TEST_F(LinkTest, WhatDoesNotFitIntoTheQueueIsLost) {
  Link link{{.bytes_per_s = 1e8, .queue_bytes = 10 * kFrame}};  // a frame takes 10 us
  const auto arrivals = send(link, 100, prng);
  EXPECT_EQ(arrivals.size() + link.counters.queue_full, 100U);
  EXPECT_GE(arrivals.size(), 20U);  // ten that left meanwhile, and those in the queue
  EXPECT_LE(arrivals.size(), 22U);
}

TEST_F(LinkTest, EachWayToLoseAFrameIsCounted) {
  Link link{
      {.queue_bytes = std::size_t{1} << 30U, .loss = 0.1, .burst_begins = 0.01, .burst_ends = 0.1}};
  send(link, 10'000, prng);
  link.down = true;
  send(link, 7, prng);
  const LinkCounters& counters = link.counters;
  EXPECT_EQ(counters.cut_off, 7U);
  EXPECT_GT(counters.lost, 500U);
  EXPECT_GT(counters.lost_in_bursts, 500U);
  EXPECT_EQ(counters.offered, counters.carried + counters.nb_lost());
}

TEST_F(LinkTest, BurstsAreAsLongAsWasSaid) {
  Link link{{.burst_begins = 0.01, .burst_ends = 0.05}};
  std::uint64_t nb_bursts = 0, last = 0;
  for (int i = 0; i < 200'000; ++i) {
    const bool lost = link.counters.lost_in_bursts != last;
    last = link.counters.lost_in_bursts;
    link.carry(kBytes, Nanos{i * 1us}, prng, [](Nanos, bool) {});
    nb_bursts += !lost && link.counters.lost_in_bursts != last ? 1 : 0;
  }
  EXPECT_NEAR(static_cast<double>(last) / static_cast<double>(nb_bursts), 20, 2);
}

TEST_F(LinkTest, DuplicatesAndDamageAreAsManyAsWasSaid) {
  Link link{{.duplicate = 0.2, .corrupt = 0.1}};
  std::uint64_t nb_damaged = 0, nb = 0;
  for (int i = 0; i < 10'000; ++i)
    link.carry(kBytes, Nanos{i * 1us}, prng, [&](Nanos, bool damaged) {
      ++nb;
      nb_damaged += damaged ? 1 : 0;
    });
  EXPECT_EQ(nb, 10'000 + link.counters.duplicated);
  EXPECT_EQ(nb_damaged, link.counters.corrupted);
  EXPECT_NEAR(static_cast<double>(link.counters.duplicated), 2000, 200);
  EXPECT_NEAR(static_cast<double>(nb_damaged), 1200, 150);
}

}  // namespace
}  // namespace snowfabric::sim
