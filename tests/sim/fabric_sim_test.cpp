// SPDX-License-Identifier: BSD-3-Clause
#include <numeric>
#include <utility>

#include <gtest/gtest.h>

#include "sim/lab.hpp"

namespace snowfabric::sim {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kPages = 2048;

ServerConfig server_config(std::uint16_t mtu = 9000) { return {.mtu_bytes = mtu}; }

std::uint64_t unique_bytes(const TestImage& image, std::uint16_t mtu) {
  return image.nb_data_pages * wire::page_wire_bytes(wire::fragments_for_mtu(mtu));
}

void expect_right(Lab& lab) {
  EXPECT_TRUE(lab.judge().ok()) << testing::PrintToString(lab.judge().broken());
}

void expect_complete_and_right(Lab& lab) {
  expect_right(lab);
  for (const auto& host : lab.memtaps()) {
    if (!host->process) continue;
    for (const auto& guest : host->guests) {
      EXPECT_TRUE(guest->done()) << guest->name();
      const GuestCounters& counters = guest->counters();
      EXPECT_EQ(counters.installed_pages.read() + counters.zero_pages.read(), kPages);
    }
  }
}

struct Loss {
  std::uint16_t mtu;
  double loss;
  double max_wire_ratio;
};

class MixedOrders : public testing::TestWithParam<Loss> {};

/// 8 clones on 4 hosts read everything: bytes right, each page installed once, wire bytes bounded.
TEST_P(MixedOrders, EightClonesCompleteWithinTheWireBudget) {
  const auto [mtu, loss, max_ratio] = GetParam();
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE(seed);
    const TestImage image{kPages, 0.4, seed};
    Lab lab{image, server_config(mtu), seed};
    lab.server().down.config.loss = loss;
    for (int h = 0; h < 4; ++h) lab.add_memtap({.jitter = 20us, .loss = loss});
    lab.run_until(1s);  // all have joined, lost HELLOs repeated
    for (std::uint64_t h = 0; h < 4; ++h) {
      lab.add_guest(*lab.memtaps()[h], sequential(kPages));
      lab.add_guest(*lab.memtaps()[h], shuffled(kPages, seed * 100 + h));
    }
    ASSERT_TRUE(lab.run(60s));
    expect_complete_and_right(lab);
    EXPECT_LE(static_cast<double>(lab.wire_bytes()),
              max_ratio * static_cast<double>(unique_bytes(image, mtu)));
    EXPECT_GE(lab.server_stats().end_game_entered.read(), 1U);
  }
}
INSTANTIATE_TEST_SUITE_P(Sim, MixedOrders,
                         testing::Values(Loss{9000, 0, 1.10}, Loss{1500, 0, 1.10},
                                         Loss{9000, 0.05, 1.5}, Loss{1500, 0.05, 1.5}));

TEST(Lockstep, EightClonesInTheSameOrderCostAtMostElevenTenthsOfAMulticastAPage) {
  const TestImage image{kPages, 0.3, 7};
  Lab lab{image, server_config(), 7};
  for (int h = 0; h < 4; ++h) {
    Memtap& host = lab.add_memtap({.jitter = 15us});
    for (int g = 0; g < 2; ++g) lab.add_guest(host, sequential(kPages));
  }
  ASSERT_TRUE(lab.run(30s));
  expect_complete_and_right(lab);
  EXPECT_LE(lab.server_stats().tx_pages_multicast.read(), image.nb_data_pages * 11 / 10);
  EXPECT_GT(lab.server_stats().lockstep_hits.read() + lab.server_stats().wants_merged.read(), 0U);
}

TEST(Faults, DuplicatedAndReorderedFramesNeitherInstallTwiceNorStall) {
  const TestImage image{kPages, 0.3, 8};
  Lab lab{image, server_config(1500), 8};
  for (std::uint64_t h = 0; h < 3; ++h) {
    Memtap& host = lab.add_memtap({.jitter = 200us, .loss = 0.01, .duplicate = 0.1});
    lab.add_guest(host, shuffled(kPages, h));
  }
  ASSERT_TRUE(lab.run(60s));
  expect_complete_and_right(lab);
}

TEST(Faults, JitterOnTheWayToTheSwitchReordersWhatTheServerSends) {
  const TestImage image{kPages, 0.3, 8};
  Lab lab{image, server_config(), 8};
  lab.server().up.config.jitter = 500us;
  Memtap& host = lab.add_memtap({});
  host.prefetch = 16;
  lab.add_guest(host, sequential(kPages));
  std::uint32_t last = 0, nb_overtaken = 0;
  host.down.drop = [&](const wire::Frame& frame) {
    if (frame.type == wire::FrameType::kPage && frame.seq < std::exchange(last, frame.seq))
      ++nb_overtaken;
    return false;
  };
  ASSERT_TRUE(lab.run(60s));
  expect_complete_and_right(lab);
  EXPECT_GT(nb_overtaken, 10U);
}

TEST(Faults, ADamagedControlFrameIsRefusedByTheCard) {
  const TestImage image{kPages, 0, 8};
  Lab lab{image, server_config(), 8};
  lab.server().up.config.corrupt = 0.3;
  Memtap& host = lab.add_memtap({});
  host.up.config.corrupt = 0.3;
  lab.add_guest(host, sequential(kPages));
  ASSERT_TRUE(lab.run(60s));
  expect_complete_and_right(lab);
  EXPECT_GT(host.tx_refused_by_switch, 0U);
  EXPECT_GT(host.drops().by_reason[static_cast<std::size_t>(wire::Drop::kBadCrc)].read(), 0U);
}

TEST(Faults, ALostRequestIsAskedAgainWithTheRetryFlag) {
  const TestImage image{64, 0, 9};
  Lab lab{image, server_config(), 9};
  Memtap& host = lab.add_memtap({});
  lab.add_guest(host, {5});
  unsigned seen = 0;
  bool retry_flag = false;
  lab.server().down.drop = [&](const wire::Frame& f) {
    if (f.type != wire::FrameType::kRequest || f.nb_wants() == 0) return false;
    retry_flag = (f.want(0).flags & wire::kWantRetry) != 0;
    return ++seen <= 2;  // the first two never arrive
  };
  ASSERT_TRUE(lab.run(5s));
  EXPECT_EQ(seen, 3U);
  EXPECT_TRUE(retry_flag);
  EXPECT_EQ(host.stats().retries.read(), 2U);
}

TEST(Faults, OnlyTheMissingFragmentIsSentAgain) {
  const TestImage image{64, 0, 10};
  Lab lab{image, server_config(1500), 10};
  Memtap& host = lab.add_memtap({});
  lab.add_guest(host, {5});
  bool dropped = false;
  host.down.drop = [&](const wire::Frame& f) {  // fragment 1 of page 5 is lost once
    const bool hit = f.type == wire::FrameType::kPage && f.page.fragment == 1 && !dropped;
    dropped |= hit;
    return hit;
  };
  ASSERT_TRUE(lab.run(5s));
  expect_right(lab);
  EXPECT_EQ(host.stats().rx_fragments.read(), 3U);
  EXPECT_EQ(lab.server_stats().tx_pages_partial.read(), 1U);
}

TEST(Faults, SeveralGuestsOfAHostFaultingOnePageAskOnce) {
  const TestImage image{64, 0, 11};
  Lab lab{image, server_config(), 11};
  Memtap& host = lab.add_memtap({});
  for (int g = 0; g < 5; ++g) lab.add_guest(host, {9});
  ASSERT_TRUE(lab.run(5s));
  EXPECT_EQ(host.stats().asked_demand.read(), 1U);
  EXPECT_EQ(lab.server_stats().wants.read(), 1U);
}

TEST(Members, ALateJoinerAndAHostThatDiesLeaveTheOthersComplete) {
  const TestImage image{kPages, 0.3, 12};
  Lab lab{image, server_config(), 12};
  for (std::uint64_t h = 0; h < 3; ++h) {
    Memtap& host = lab.add_memtap({});
    lab.add_guest(host, shuffled(kPages, h));
  }
  lab.at(5ms, [&] {
    Memtap& dead = *lab.memtaps()[0];
    lab.kill_guest(dead, *dead.guests[0]);
    lab.kill_memtap(dead);
  });
  lab.at(20ms, [&] {
    Memtap& late = lab.add_memtap({});
    lab.add_guest(late, sequential(kPages));
  });
  lab.run_until(21ms);
  ASSERT_TRUE(lab.run(60s));
  expect_complete_and_right(lab);
  lab.run_until(lab.now() + 10s);  // the dead one falls silent for longer than client_timeout
  EXPECT_EQ(lab.server_stats().clients_timed_out.read(), 1U);
  EXPECT_EQ(lab.server_stats().clients.read(), 3U);
}

TEST(Server, ARestartWithTheSameImageLetsEveryCloneComplete) {
  const TestImage image{kPages, 0.3, 13};
  Lab lab{image, server_config(), 13};
  for (std::uint64_t h = 0; h < 3; ++h) {
    Memtap& host = lab.add_memtap({});
    lab.add_guest(host, shuffled(kPages, h));
  }
  lab.at(10ms, [&] { lab.kill_server(); });
  lab.at(300ms, [&] { lab.start_server(77); });
  ASSERT_TRUE(lab.run(60s));
  expect_complete_and_right(lab);
  for (const auto& host : lab.memtaps()) {
    EXPECT_EQ(host->stats().server_restarts.read(), 1U);
    EXPECT_EQ(host->stats().rx_lost.read(), 0U);  // a new sequence is not a gap
  }
}

TEST(Server, OneThatStaysDeadIsGivenUpAfterTheConfiguredTime) {
  const TestImage image{kPages, 0, 14};
  Lab lab{image, server_config(), 14};
  Memtap& host = lab.add_memtap({}, [](ClientConfig& c) { c.give_up = 2s; });
  const Guest& guest = lab.add_guest(host, sequential(kPages));
  lab.at(5ms, [&] { lab.kill_server(); });
  lab.run_until(1900ms);
  EXPECT_EQ(host.engine().state(), ClientState::kJoined);
  EXPECT_FALSE(guest.failed());
  lab.run_until(2200ms);
  EXPECT_EQ(host.engine().state(), ClientState::kServerDead);
  EXPECT_TRUE(guest.failed());
  EXPECT_FALSE(guest.done());
}

TEST(Server, OneThatNeverAnswersTheHelloIsGivenUpToo) {
  const TestImage image{16, 0, 15};
  Lab lab{image, server_config(), 15};
  lab.kill_server();
  Memtap& host = lab.add_memtap({}, [](ClientConfig& c) { c.give_up = 1s; });
  lab.run_until(1100ms);
  EXPECT_EQ(host.engine().state(), ClientState::kServerDead);
  EXPECT_EQ(host.stats().tx_requests.read(), 0U);
  lab.start_server(5);  // it comes after all
  lab.run_until(1500ms);
  EXPECT_EQ(host.engine().state(), ClientState::kJoined);
}

/// Finish times of 4 hosts; host 0 behind a link of `slow_share` of the others' rate.
std::vector<Nanos> finish_times(double slow_share) {
  const TestImage image{kPages * 4, 0.1, 16};
  ServerConfig config = server_config();
  config.flow.initial_bytes_per_s = 100e6;
  config.flow.max_bytes_per_s = 1.25e9;
  Lab lab{image, config, 16};
  for (std::uint64_t h = 0; h < 4; ++h) {
    LinkConfig link{.bytes_per_s = 125e6, .queue_bytes = 256U << 10};
    if (h == 0) link.bytes_per_s *= slow_share;
    Memtap& host = lab.add_memtap(link);
    for (std::uint64_t g = 0; g < 8; ++g) lab.add_guest(host, shuffled(image.nb_pages, h * 8 + g));
  }
  EXPECT_TRUE(lab.run(120s));
  std::vector<Nanos> times;
  for (const auto& host : lab.memtaps()) {
    Nanos last{0};
    for (const auto& guest : host->guests) last = std::max(last, guest->done_at());
    times.push_back(last);
  }
  return times;
}

TEST(FlowControl, ATenfoldSlowerReceiverNeitherStallsTheOthersNorStarves) {
  const auto equal = finish_times(1.0);
  const auto one_slow = finish_times(0.1);
  for (std::size_t h = 1; h < 4; ++h)
    EXPECT_LE(one_slow[h].count(), equal[h].count() * 3 / 2) << "host " << h;
  EXPECT_GT(one_slow[0], Nanos{0});  // it finished too
}

/// Rate the flow control settles at under unlimited demand, with background loss.
double settled_rate(double loss) {
  const TestImage image{kPages * 16, 0, 17};
  ServerConfig config = server_config();
  config.push = true;  // unlimited demand: the bucket is the limit
  config.flow.initial_bytes_per_s = 20e6;
  config.flow.max_bytes_per_s = 100e6;
  Lab lab{image, config, 17};
  for (int h = 0; h < 4; ++h) lab.add_memtap({.loss = loss});
  lab.run_until(1200ms);
  return static_cast<double>(lab.server_stats().rate_bytes_per_s.read());
}

TEST(FlowControl, FivePercentRandomLossIsNotTakenForCongestion) {
  EXPECT_GE(settled_rate(0.05), 0.7 * settled_rate(0));
}

TEST(FlowControl, APersistentlyOverrunLinkLowersTheRateToWhatItCarries) {
  const TestImage image{kPages * 32, 0, 18};
  ServerConfig config = server_config();
  config.push = true;
  config.flow.initial_bytes_per_s = 200e6;
  Lab lab{image, config, 18};
  for (int h = 0; h < 2; ++h) lab.add_memtap({.bytes_per_s = 40e6, .queue_bytes = 128U << 10});
  lab.run_until(1500ms);
  const auto rate = static_cast<double>(lab.server_stats().rate_bytes_per_s.read());
  EXPECT_LE(rate, 40e6 * 1.3);
  EXPECT_GE(rate, 40e6 * 0.5);
}

TEST(Junk, RandomForeignAndStaleFramesAreCountedAndChangeNothing) {
  const TestImage image{kPages, 0.3, 19};
  Lab lab{image, server_config(), 19};
  Memtap& host = lab.add_memtap({});
  lab.add_guest(host, shuffled(kPages, 1));
  Prng prng{19};
  const wire::Identity good{image.view().image_id, 1, 1, 0};
  for (int i = 0; i < 300; ++i)
    lab.at(Nanos{i * 50us}, [&, i] {
      Bytes junk(64 + prng.next() % 1200);
      for (auto& b : junk) b = static_cast<std::byte>(prng.next());
      wire::Identity id = good;
      if (i % 4 == 0) id.epoch = 9;
      if (i % 4 == 1) id.image_id = 1;
      if (i % 4 != 3) {
        const std::size_t n = wire::write_page_header(
            junk, id, {}, kServerMac, Gfn{i % 4 == 2 ? kPages + prng.next() % 1000 : 5}, 1, 0, 1, 0,
            0);
        junk.resize(n + kPageSize);
      }
      lab.inject(i % 2 == 0 ? static_cast<Party&>(host) : lab.server(), junk);
      lab.inject(i % 2 == 0 ? static_cast<Party&>(lab.server()) : host, junk);
    });
  ASSERT_TRUE(lab.run(30s));
  expect_complete_and_right(lab);
  const auto total = [](const DropCounters& d) {
    return std::accumulate(d.by_reason.begin(), d.by_reason.end(), std::uint64_t{0},
                           [](std::uint64_t n, const Counter& c) { return n + c.read(); });
  };
  lab.run_until(std::max(lab.now(), Nanos{300 * 50us + 1ms}));
  EXPECT_EQ(total(host.drops()) + host.stats().rx_duplicates.read(), 300U);
  EXPECT_EQ(total(lab.server().drops), 300U);
  EXPECT_GT(host.drops().by_reason[static_cast<std::size_t>(wire::Drop::kOutOfRange)].read(), 0U);
}

TEST(Junk, APageWithWrongBytesIsRefusedByItsChecksum) {
  const TestImage image{64, 0, 20};
  Lab lab{image, server_config(), 20};
  Memtap& host = lab.add_memtap({});
  Guest& guest = lab.add_guest(host, {});
  lab.run_until(1ms);  // joined
  Bytes frame(wire::page_wire_bytes(1));
  wire::write_page_header(frame, {image.view().image_id, 1, 1, 0}, host.mac, kServerMac, Gfn{3},
                          image.crc[3], 0, 1, 0, 0);
  lab.inject(host, frame);  // page 3's checksum over zeros
  lab.run_until(2ms);
  EXPECT_EQ(host.drops().by_reason[static_cast<std::size_t>(wire::Drop::kBadCrc)].read(), 1U);
  EXPECT_TRUE(guest.presence().absent(Gfn{3}));
}

TEST(Geometry, AClientWhosePortIsTooSmallForTheServersFramesSaysSo) {
  const TestImage image{64, 0, 21};
  Lab lab{image, server_config(9000), 21};
  Memtap& host = lab.add_memtap({}, [](ClientConfig& c) { c.mtu_bytes = 1500; });
  lab.run_until(1ms);
  EXPECT_EQ(host.engine().state(), ClientState::kMtuTooSmall);
}

TEST(Push, AnIdleClientReceivesTheWholeImageAndReportsItsRate) {
  const TestImage image{kPages, 0.3, 22};
  ServerConfig config = server_config();
  config.push = true;
  Lab lab{image, config, 22};
  Memtap& host = lab.add_memtap({});
  const Guest& guest = lab.add_guest(host, {});
  lab.run_until(2s);
  expect_right(lab);
  const GuestCounters& counters = guest.counters();
  EXPECT_EQ(counters.installed_pages.read() + counters.zero_pages.read(), kPages);
  EXPECT_EQ(host.stats().asked_demand.read(), 0U);
  EXPECT_GE(lab.server_stats().rx_requests.read(), 5U);  // reports without wants
}

}  // namespace
}  // namespace snowfabric::sim
