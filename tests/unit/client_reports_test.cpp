// SPDX-License-Identifier: BSD-3-Clause
// What a client reports, and when.
#include <gmock/gmock.h>

#include "fabric/client_engine.hpp"
#include "tests/unit/engine_harness.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;
using test::TestClient;
using testing::SizeIs;

TEST(ClientReports, AClientThatOnlyReceivesReportsAtTheServersInterval) {
  TestClient client;
  client.join();
  std::size_t nb_reports = 0;
  for (; client.now < 1s; client.now += 1ms) {
    client.page(static_cast<std::uint64_t>(client.now / 1ms));
    nb_reports += client.send().size();
  }
  EXPECT_GE(nb_reports, 18U);
  EXPECT_LE(nb_reports, 21U);
}

TEST(ClientReports, AClientWithNothingToReportDoesSoATenthAsOften) {
  TestClient client;
  client.join();
  std::size_t nb_reports = 0;
  for (; client.now < 5s; client.now += 1ms) nb_reports += client.send().size();
  EXPECT_EQ(nb_reports, 9U);
  EXPECT_GE(client.engine.deadline(client.now), client.now);
}

TEST(ClientReports, TheFirstFrameAfterAQuietTimeHasTwoReportsWithinTwoIntervals) {
  TestClient client;
  client.join();
  client.send_until(3s);
  client.send_until(client.engine.deadline(client.now) + 100ms);  // a quiet report, and some more
  std::size_t nb_reports = 0;
  for (const Nanos end = client.now + 101ms; client.now < end; client.now += 1ms) {
    client.page(static_cast<std::uint64_t>(client.now / 1ms) % 1000);
    nb_reports += client.send().size();
  }
  EXPECT_EQ(nb_reports, 2U);
}

TEST(ClientReports, ReportsAreTotalsSoThatALostOneLosesNothing) {
  TestClient client;
  client.join();
  client.page(0);
  client.now += 60ms;
  EXPECT_THAT(client.send(), SizeIs(1));  // this one is lost
  client.seq += 2;                        // and two frames of the group
  client.page(1);
  client.now += 60ms;
  const auto sent = client.send();
  ASSERT_THAT(sent, SizeIs(1));
  const wire::ReportBody& report = sent[0].frame.request.report;
  EXPECT_EQ(report.rx_frames.host(), 2U);
  EXPECT_EQ(report.lost.host(), 2U);
  EXPECT_EQ(report.rx_bytes.host(), 2 * wire::page_wire_bytes(1));
  EXPECT_EQ(report.clock_us.host(), 120'000U);
}

TEST(ClientReports, WhatWentOutWhileTheHostWasCutOffIsNotReportedAsLost) {
  TestClient client;
  client.join();
  client.page(0);
  client.now += 600ms;
  client.seq += 1000;
  client.page(1);
  EXPECT_EQ(client.stats.rx_lost.read(), 0U);
  client.now += 400ms;
  client.seq += 3;  // not so long that it was cut off
  client.page(2);
  EXPECT_EQ(client.stats.rx_lost.read(), 3U);
}

}  // namespace
}  // namespace snowfabric
