// SPDX-License-Identifier: BSD-3-Clause
#include "sim/scenario.hpp"

#include <set>

#include <gtest/gtest.h>

#include "fabric/client_engine.hpp"
#include "sim/run.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

TEST(Scenario, EverySeedHasClonesPagesAndFaultsEnough) {
  std::set<FaultKind> seen;
  std::set<Nanos> delays;
  std::set<std::size_t> queues;
  bool server_is_late = false;
  for (std::uint64_t seed = 1; seed <= 2000; ++seed) {
    const Scenario scenario = Scenario::of_seed(seed);
    EXPECT_GE(scenario.nb_memtaps * scenario.guests_per_memtap, 4U) << seed;
    EXPECT_GE(scenario.nb_pages, 2000U) << seed;
    std::set<FaultKind> kinds;
    delays.insert(scenario.delay);
    queues.insert(scenario.queue_bytes);
    for (const Fault& fault : scenario.faults) {
      kinds.insert(fault.kind);
      EXPECT_LE(fault.party, scenario.nb_memtaps) << seed;
      server_is_late |= fault.kind == FaultKind::kLateJoin && fault.party == 0;
    }
    EXPECT_GE(kinds.size(), 3U) << seed;
    EXPECT_LT(scenario.outage(), ClientConfig{}.give_up) << seed;
    seen.merge(kinds);
  }
  EXPECT_EQ(seen.size(), kNbFaultKinds);
  EXPECT_GE(delays.size(), 3U);
  EXPECT_GE(queues.size(), 3U);
  EXPECT_TRUE(server_is_late);
}

TEST(Scenario, NeighbouringSeedsShareNoInstant) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    std::set<Nanos> instants;
    for (const Fault& fault : Scenario::of_seed(seed).faults)
      if (fault.at != Nanos{0}) instants.insert(fault.at);
    for (const Fault& fault : Scenario::of_seed(seed + 1).faults)
      EXPECT_FALSE(instants.contains(fault.at)) << seed;
  }
}

TEST(Scenario, ThreeKindsOfFaultBeginWhileClonesFetch) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed)
    EXPECT_GE(run(Scenario::of_seed(seed)).nb_kinds_begun, kLeastKinds) << seed;
}

TEST(Run, TheSameSeedHasTheSameOutcome) {
  for (const std::uint64_t seed : {3U, 4U}) {
    const Outcome first = run(Scenario::of_seed(seed)), second = run(Scenario::of_seed(seed));
    EXPECT_EQ(first.took, second.took);
    EXPECT_EQ(first.nb_frames, second.nb_frames);
    EXPECT_EQ(first.wire_bytes, second.wire_bytes);
    EXPECT_EQ(first.longest_wait, second.longest_wait);
  }
}

TEST(Run, ATraceWithFramesTellsOfEachAndChangesNothing) {
  const Scenario scenario = Scenario::of_seed(3);
  std::size_t nb_sent = 0, nb_lost = 0;
  const auto count = [&](Nanos, const std::string& what) {
    nb_sent += what.starts_with("server to all: page") ? 1 : 0;
    nb_lost += what.contains("does not get") ? 1 : 0;
  };
  const Outcome traced = run(scenario, count, true);
  EXPECT_EQ(traced.nb_frames, run(scenario).nb_frames);
  EXPECT_GT(nb_sent, scenario.nb_pages / 4);
  EXPECT_LT(nb_lost, nb_sent);
}

TEST(Run, ADeadServerIsToldToEachCloneThatLacksPages) {
  const Scenario scenario{.nb_pages = 2000,
                          .faults = {{.kind = FaultKind::kServerDeath, .at = 2ms}}};
  const Outcome outcome = run(scenario);
  EXPECT_TRUE(outcome.ok()) << testing::PrintToString(outcome.broken);
  EXPECT_EQ(outcome.nb_failed_guests, 4U);
}

/// The server is out of reach for longer than a memtap endures, which the judge does not expect.
TEST(Run, EndsWithTheFirstThatIsBroken) {
  const Outcome outcome = run(
      {.nb_pages = 2000, .faults = {{.kind = FaultKind::kPartition, .at = 1ms, .length = 30s}}});
  ASSERT_FALSE(outcome.ok());
  EXPECT_EQ(outcome.first, Breach::kToldAbsent);
  EXPECT_LT(outcome.took, ClientConfig{}.give_up + 1s);
}

/// Runs a lab in which one thing goes wrong. @return when all clones had all pages
Nanos time_with(const Fault& fault) {
  const Outcome outcome = run({.nb_pages = 2000, .faults = {fault}});
  EXPECT_TRUE(outcome.ok()) << testing::PrintToString(outcome.broken);
  EXPECT_EQ(outcome.nb_failed_guests, 0U);
  return outcome.took;
}

TEST(Run, WhoComesLateIsWaitedFor) {
  for (const std::uint32_t party : {0U, 1U})
    EXPECT_GT(time_with({.kind = FaultKind::kLateJoin, .length = 300ms, .party = party}), 300ms);
  EXPECT_GT(time_with({.kind = FaultKind::kLateGuest, .length = 300ms, .party = 1}), 300ms);
}

TEST(Run, AGuestThatStandsStillTouchesNothingMeanwhile) {
  EXPECT_GT(time_with({.kind = FaultKind::kGuestPause, .at = 1ms, .length = 1s, .party = 1}), 1s);
}

TEST(Run, ALateGuestMayDieBeforeItComes) {
  const Outcome outcome =
      run({.nb_pages = 2000,
           .faults = {{.kind = FaultKind::kLateGuest, .length = 3s, .party = 1},
                      {.kind = FaultKind::kGuestDeath, .at = 1ms, .party = 1}}});
  EXPECT_TRUE(outcome.ok()) << testing::PrintToString(outcome.broken);
  EXPECT_LT(outcome.took, 3s);
}

/// Of nothing that is wrong with the engines: the server is out of reach for longer than a memtap
/// endures, and the judge knows of no dead server.
TEST(Shrink, WhatDoesNotMatterIsLeftOut) {
  const Scenario scenario{
      .nb_pages = 2000,
      .faults = {{.kind = FaultKind::kLoss, .length = 5ms, .party = 1, .amount = 0.1},
                 {.kind = FaultKind::kPartition, .at = 1ms, .length = 30s},
                 {.kind = FaultKind::kPause, .length = 2ms, .party = 2}}};
  ASSERT_FALSE(run(scenario).ok());
  const Scenario shrunk = shrink(scenario);
  ASSERT_EQ(shrunk.faults.size(), 1U);
  EXPECT_EQ(shrunk.faults[0].kind, FaultKind::kPartition);
  EXPECT_EQ(shrunk.nb_memtaps, 1U);
  EXPECT_LT(shrunk.nb_pages, scenario.nb_pages);
  EXPECT_FALSE(run(shrunk).ok());
}

}  // namespace
}  // namespace snowfabric::sim
