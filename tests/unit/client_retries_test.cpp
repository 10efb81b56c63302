// SPDX-License-Identifier: BSD-3-Clause
// What the client asks for again, and when.
#include <vector>

#include <gmock/gmock.h>

#include "fabric/client_engine.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::TestClient;
using testing::IsEmpty;
using testing::SizeIs;

/// Times at which page 5 is asked for, until `until`, if nobody answers.
std::vector<Nanos> ask_times(TestClient& client, Nanos until) {
  std::vector<Nanos> times;
  for (; client.now < until; client.now += 250us)
    for (const wire::WantEntry& want : client.send_wants()) {
      EXPECT_EQ((want.flags & wire::kWantRetry) != 0, !times.empty());
      times.push_back(client.now);
    }
  return times;
}

TEST(ClientRetries, AnUnansweredDemandIsRetriedWithDoublingPausesUpToTheMaximum) {
  ClientConfig config = TestClient::defaults();
  config.rto = {.initial = 20ms, .min = 1ms, .max = 100ms};
  TestClient client{config};
  client.join();
  client.demand(5);
  const auto times = ask_times(client, 1s);
  ASSERT_GE(times.size(), 8U);
  const std::array<Nanos, 5> least{20ms, 40ms, 80ms, 100ms, 100ms};
  for (std::size_t i = 0; i < least.size(); ++i) {
    EXPECT_GE(times[i + 1] - times[i], least[i]);
    EXPECT_LE(times[i + 1] - times[i], least[i] * 5 / 4 + 1ms) << "pause " << i;
  }
  EXPECT_EQ(client.stats.retries.read(), times.size() - 1);
}

TEST(ClientRetries, APrefetchIsGivenUpAfterItsAttempts) {
  TestClient client;
  client.join();
  client.prefetch(5);
  EXPECT_THAT(ask_times(client, 2s), SizeIs(3));
  EXPECT_FALSE(client.engine.in_flight(Gfn{5}));
  EXPECT_EQ(client.stats.prefetch_given_up.read(), 1U);
}

TEST(ClientRetries, TheRoundTripIsMeasuredFromPagesAskedForOnce) {
  TestClient client;
  client.join();
  client.demand(5);
  client.send();
  client.now += 3ms;
  EXPECT_TRUE(client.page(5));
  EXPECT_EQ(client.stats.srtt_us.read(), 3000U);
}

TEST(ClientRetries, APageAskedForTwiceIsNoMeasurement) {  // Karn's rule
  TestClient client;
  client.join();
  client.demand(5);
  client.send();
  client.now += 30ms;
  EXPECT_THAT(client.send_wants(), SizeIs(1));  // the retry
  client.now += 1ms;
  EXPECT_TRUE(client.page(5));
  EXPECT_EQ(client.stats.srtt_us.read(), 0U);
}

TEST(ClientRetries, AQueueLongerThanTheTimeOutCostsOneRetryNotOneAPage) {
  TestClient client;
  client.join();
  for (const std::uint64_t page : {5U, 6U, 7U, 8U}) {
    client.demand(page);
    for (const Nanos answered = client.now + 30ms; client.now < answered; client.now += 250us)
      client.send();
    EXPECT_TRUE(client.page(page));
  }
  EXPECT_EQ(client.stats.retries.read(), 1U);
  EXPECT_EQ(client.stats.srtt_us.read(), 30'000U);
}

TEST(ClientRetries, APrefetchThatBecomesADemandMeasuresNothingAndBacksNothingOff) {
  TestClient client;
  client.join();
  client.prefetch(5);
  client.send();
  client.demand(5);
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  EXPECT_TRUE(client.page(5));
  EXPECT_EQ(client.stats.srtt_us.read(), 0U);
  client.demand(6);
  const Nanos asked = client.now;
  EXPECT_THAT(client.send_wants(), SizeIs(1));
  while (client.send_wants().empty()) client.now += 250us;
  EXPECT_LE(client.now - asked, 26ms);  // 20 and a quarter, not 40
}

TEST(ClientRetries, TheDeadlineIsNeverInThePastAndNeverMissesWork) {
  TestClient client;
  client.join();
  client.demand(5);
  client.send();
  for (int i = 0; i < 200; ++i) {
    const Nanos deadline = client.engine.deadline(client.now);
    ASSERT_GT(deadline, client.now);
    client.now = deadline - 1ns;
    ASSERT_THAT(client.send(), IsEmpty());
    client.now = deadline;
    client.send();
  }
  EXPECT_GE(client.stats.retries.read(), 5U);
}

}  // namespace
}  // namespace snowfabric
