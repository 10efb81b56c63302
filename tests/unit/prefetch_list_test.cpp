// SPDX-License-Identifier: BSD-3-Clause
#include <gmock/gmock.h>

#include "memtap-dpdk/host.hpp"
#include "tests/unit/engine_harness.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric {
namespace {

using testing::IsEmpty;
using Ranges = std::vector<PageRange>;

constexpr std::uint64_t kPages = 4096;

struct PrefetchList : testing::Test {
  void SetUp() override { client.join(kPages); }
  /// Polls and answers until nothing is in flight. @return the pages asked for, in order
  std::vector<std::uint64_t> fetch_all() {
    std::vector<std::uint64_t> order;
    for (int turn = 0; turn < 100; ++turn) {
      host.poll_faults(client.now);
      const auto wants = client.send_wants();
      for (const auto& want : wants)
        for (std::uint64_t p = want.first.host(); p < want.first.host() + want.nb_pages.host(); ++p)
          order.push_back(p);
      for (const auto& want : wants)
        for (std::uint64_t p = want.first.host(); p < want.first.host() + want.nb_pages.host(); ++p)
          host.on_page(*client.page(p), client.now);
    }
    host.flush(client.now);
    return order;
  }

  test::TestClient client;
  HostStats stats;
  Host host{client.engine, stats, 0, 64};
  test::FakeGuest guest{kPages};
};

TEST_F(PrefetchList, ItsPagesAreFetchedInItsOrder) {
  host.attach(guest);
  host.prefetch(Ranges{{Gfn{50}, 3}, {Gfn{10}, 2}});
  EXPECT_THAT(fetch_all(), testing::ElementsAre(50, 51, 52, 10, 11));
  EXPECT_TRUE(guest.has(52) && guest.has(10));
  EXPECT_EQ(stats.prefetch_wanted.read(), 5U);
}

TEST_F(PrefetchList, NothingIsFetchedBeforeThereIsAGuest) {
  host.prefetch(Ranges{{Gfn{50}, 3}});
  host.poll_faults(client.now);
  EXPECT_THAT(client.send_wants(), IsEmpty());
  host.attach(guest);
  host.poll_faults(client.now);
  EXPECT_EQ(client.engine.nb_in_flight(), 3U);
}

TEST_F(PrefetchList, ALongListLeavesMostOfTheTableToFaultsAndIsFetchedWhole) {
  host.attach(guest);
  host.prefetch(Ranges{{Gfn{0}, kPages}});
  host.poll_faults(client.now);
  EXPECT_LE(client.engine.nb_in_flight(), 512U);
  EXPECT_GE(client.engine.nb_in_flight(), 256U);
  fetch_all();
  EXPECT_EQ(guest.presence().count(PageState::kPresent), kPages);
}

TEST_F(PrefetchList, PagesThatArePresentAreSkipped) {
  host.attach(guest);
  guest.install(Gfn{51}, test::page_bytes(51));
  host.prefetch(Ranges{{Gfn{50}, 3}});
  EXPECT_THAT(fetch_all(), testing::ElementsAre(50, 52));
}

TEST_F(PrefetchList, PagesOutsideTheImageAreSkippedWithoutWalkingThem) {
  host.attach(guest);
  host.prefetch(Ranges{{Gfn{kPages - 2}, 0xffff'ffff},
                       {Gfn{kPages}, 0xffff'ffff},
                       {Gfn{~std::uint64_t{0} - 5}, 100},
                       {Gfn{7}, 1}});
  EXPECT_THAT(fetch_all(), testing::ElementsAre(kPages - 2, kPages - 1, 7));
}

}  // namespace
}  // namespace snowfabric
