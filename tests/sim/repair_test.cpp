// SPDX-License-Identifier: BSD-3-Clause
// Hosts that send each other what a dead server owes them.
#include <gtest/gtest.h>

#include "sim/lab.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kPages = 512;

struct Repair : testing::TestWithParam<std::uint16_t> {
  /// Hosts with all pages, then the server dies, and a clone that has none comes to another host.
  Repair() {
    for (unsigned i = 0; i < 5; ++i) lab.add_memtap(link).keeps = true;
    for (unsigned i = 0; i < 4; ++i) lab.add_guest(*lab.memtaps()[i], sequential(kPages));
    lab.run_until(2s);
    for (const auto& host : lab.memtaps()) host->config.give_up = 3s;
    lab.kill_server();
  }
  Memtap& last() { return *lab.memtaps()[4]; }
  /// Frames with pages that hosts sent to each other.
  [[nodiscard]] std::uint64_t sum(Counter ClientStats::* counter) const {
    std::uint64_t all = 0;
    for (const auto& host : lab.memtaps()) all += (host->stats().*counter).read();
    return all;
  }

  const TestImage image{kPages, 0.3, 21};
  const LinkConfig link{.loss = 0.02};
  Lab lab{image, {.mtu_bytes = GetParam()}, 21};
};

TEST_P(Repair, AClonesPagesComeFromTheOtherHosts) {
  const Guest& guest = lab.add_guest(last(), shuffled(kPages, 3));
  lab.run_until(60s);
  EXPECT_TRUE(guest.done());
  EXPECT_FALSE(guest.failed());
  EXPECT_TRUE(lab.judge().ok()) << testing::PrintToString(lab.judge().broken());
  EXPECT_GT(last().stats().rx_repairs.read(), image.nb_data_pages / 2);
}

TEST_P(Repair, OfSeveralHostsWithAPageHardlyMoreThanOneSendsIt) {
  const Guest& guest = lab.add_guest(last(), shuffled(kPages, 3));
  lab.run_until(60s);
  ASSERT_TRUE(guest.done());
  EXPECT_GE(sum(&ClientStats::tx_repairs), kPages - 1);
  EXPECT_LE(sum(&ClientStats::tx_repairs), kPages * 5 / 4);
  EXPECT_GE(sum(&ClientStats::repairs_left), kPages * 2);
}

TEST_P(Repair, WhereNobodyKeepsThePageTheCloneIsToldSo) {
  for (const auto& host : lab.memtaps()) host->process->loop.serve(*host->process->host);
  const Guest& guest = lab.add_guest(last(), shuffled(kPages, 3));
  lab.run_until(60s);
  EXPECT_TRUE(guest.failed());
}

TEST_P(Repair, TheServersReturnEndsIt) {
  lab.add_guest(last(), shuffled(kPages, 3), {.think = 20ms});
  lab.run_until(lab.now() + 4s);
  EXPECT_TRUE(last().engine().asks_siblings());
  lab.start_server(99);
  lab.run_until(lab.now() + 1s);
  EXPECT_FALSE(last().engine().asks_siblings());
  const std::uint64_t before = last().stats().sibling_requests.read();
  ASSERT_TRUE(lab.run(lab.now() + 60s));
  EXPECT_EQ(last().stats().sibling_requests.read(), before);
  EXPECT_TRUE(lab.judge().ok());
}

INSTANTIATE_TEST_SUITE_P(Mtus, Repair, testing::Values(9000, 1500));

}  // namespace
}  // namespace snowfabric::sim
