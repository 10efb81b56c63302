// SPDX-License-Identifier: BSD-3-Clause
// Datagrams, ARP and IGMP of a port without a kernel behind it.
#include "library/ip_member.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

using Bytes = std::vector<std::byte>;

constexpr ip::Address kServerIp{0x0A350001}, kClientIp{0x0A350002}, kGroup{0xEFC232F6};
constexpr MacAddr kServerMac{{2, 0, 0, 0, 0, 1}}, kClientMac{{2, 0, 0, 0, 0, 2}};
constexpr std::uint64_t kImageId = 0x1122334455667788;
constexpr std::uint16_t kPort = 21318;

IpMember server() {
  return IpMember{{.own = {kServerMac, kServerIp},
                   .group = kGroup,
                   .port = kPort,
                   .side = Side::kServer,
                   .image_id = kImageId}};
}
IpMember client() {
  return IpMember{{.own = {kClientMac, kClientIp},
                   .group = kGroup,
                   .port = kPort,
                   .side = Side::kClient,
                   .image_id = kImageId}};
}

/// What the member makes of an engine's frame to `dst`.
Bytes wrapped(IpMember& member, const MacAddr& dst, std::size_t payload_bytes) {
  Bytes frame(ip::kHeaderBytes + sizeof(wire::EthHdr) + payload_bytes, std::byte{0x5A});
  const wire::EthHdr eth{.dst = dst, .src = member.member(), .type = wire::kEtherType};
  std::memcpy(frame.data() + ip::kHeaderBytes, &eth, sizeof eth);
  member.wrap(frame, sizeof eth + payload_bytes);
  return frame;
}

wire::EthHdr eth_of(const Bytes& frame) {
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data(), sizeof eth);
  return eth;
}

std::optional<IpMember::Taken> take(IpMember& member, const Bytes& frame) {
  return member.take(eth_of(frame), std::span{frame}.subspan(sizeof(wire::EthHdr)));
}

TEST(IpMember, AFrameToServersReachesServersAlone) {
  auto from = client(), other = client();
  auto to = server();
  const Bytes frame = wrapped(from, kBroadcast, 100);
  EXPECT_EQ(eth_of(frame).dst, (MacAddr{{0x01, 0, 0x5E, 0x42, 0x32, 0xF6}}));
  EXPECT_EQ(eth_of(frame).src, kClientMac);
  const auto taken = take(to, frame);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->src, from.member());
  EXPECT_EQ(taken->payload.size(), 100);
  EXPECT_EQ(taken->payload[99], std::byte{0x5A});
  EXPECT_FALSE(take(other, frame));
}

TEST(IpMember, AFrameToTheGroupReachesClientsAlone) {
  auto from = server(), other = server();
  auto to = client();
  const Bytes frame = wrapped(from, group_address(kImageId), 4140);
  ASSERT_TRUE(take(to, frame));
  EXPECT_FALSE(take(other, frame));
  EXPECT_FALSE(take(from, frame));  // nor its sender
}

TEST(IpMember, AMemberIsAnsweredAtTheMacItsFramesCameFrom) {
  auto from = client();
  auto to = server();
  const MacAddr router{{2, 0, 0, 0, 0, 99}};
  Bytes frame = wrapped(from, kBroadcast, 10);
  std::memcpy(frame.data() + 6, &router, sizeof router);
  const auto taken = take(to, frame);
  ASSERT_TRUE(taken);
  const Bytes answer = wrapped(to, taken->src, 10);
  EXPECT_EQ(eth_of(answer).dst, router);
  EXPECT_TRUE(take(from, answer));
  // Whom it does not know, all get: the address in the packet decides.
  EXPECT_EQ(eth_of(wrapped(to, ip::member_of({{0x0A350009}, 40000}), 10)).dst, kBroadcast);
}

TEST(IpMember, WhatIsNotWholeOrNotUsIsLeft) {
  auto from = client();
  auto to = server();
  const Bytes good = wrapped(from, kBroadcast, 10);
  ASSERT_TRUE(take(to, good));
  // A byte changed anywhere in the IPv4 header, and what UDP says of its length and port.
  for (std::size_t at = 14; at < 34; ++at) {
    Bytes bad = good;
    bad[at] ^= std::byte{1};
    EXPECT_FALSE(take(to, bad)) << at;
  }
  for (const std::size_t at : {36U, 37U, 38U}) {
    Bytes bad = good;
    bad[at] ^= std::byte{1};
    EXPECT_FALSE(take(to, bad)) << at;
  }
  for (std::size_t size = 14; size < good.size(); ++size)
    EXPECT_FALSE(take(to, Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))))
        << size;
  Bytes padded = good;
  padded.resize(60);
  const auto taken = take(to, padded);
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->payload.size(), 10);
}

TEST(IpMember, WhoAsksForItsMacIsAnswered) {
  auto member = server();
  std::array<std::byte, 64> out{};
  while (member.next_answer(out, 0s) != 0) {  // its first report
  }
  // RFC 826: 10.53.0.2 asks for 10.53.0.1, and then for another.
  Bytes request(14 + 28);
  const wire::EthHdr eth{.dst = kBroadcast, .src = kClientMac, .type = ip::kArpEtherType};
  std::memcpy(request.data(), &eth, sizeof eth);
  const std::array<unsigned, 28> arp{0,  1,  8, 0, 6, 4, 0, 1, 2, 0, 0,  0,  0, 2,
                                     10, 53, 0, 2, 0, 0, 0, 0, 0, 0, 10, 53, 0, 1};
  std::ranges::transform(arp, request.begin() + 14,
                         [](unsigned b) { return static_cast<std::byte>(b); });
  EXPECT_FALSE(take(member, request));
  ASSERT_EQ(member.next_answer(out, 0s), ip::kArpFrameBytes);
  Bytes reply(out.begin(), out.begin() + ip::kArpFrameBytes);
  EXPECT_EQ(eth_of(reply).dst, kClientMac);
  const std::array<unsigned, 28> expected{0,  1,  8, 0, 6, 4, 0, 2, 2, 0, 0,  0,  0, 1,
                                          10, 53, 0, 1, 2, 0, 0, 0, 0, 2, 10, 53, 0, 2};
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(reply[14 + i], static_cast<std::byte>(expected[i])) << i;
  EXPECT_EQ(member.next_answer(out, 0s), 0);
  request.back() = std::byte{9};
  EXPECT_FALSE(take(member, request));
  EXPECT_EQ(member.next_answer(out, 0s), 0);
  // A flood of them is answered as far as there is room.
  request.back() = std::byte{1};
  for (int i = 0; i < 100; ++i) take(member, request);
  int nb_answers = 0;
  while (member.next_answer(out, 0s) != 0) ++nb_answers;
  EXPECT_EQ(nb_answers, 8);
}

TEST(IpMember, ItReportsItsMembershipTwiceThenEachMinuteAndWhenAsked) {
  auto member = client();
  std::array<std::byte, 64> out{};
  ASSERT_EQ(member.next_answer(out, 0s), ip::kIgmpFrameBytes);
  // 24 bytes of IPv4 with router alert, then the report; sums by hand.
  const Bytes report(out.begin(), out.begin() + ip::kIgmpFrameBytes);
  EXPECT_EQ(eth_of(report).dst, ip::multicast_mac(kGroup));
  EXPECT_EQ(report[14], std::byte{0x46});
  EXPECT_EQ(report[14 + 8], std::byte{1});  // TTL
  EXPECT_EQ(report[14 + 9], std::byte{2});  // IGMP
  EXPECT_EQ(report[14 + 24], std::byte{0x16});
  std::uint32_t sum = 0;
  for (std::size_t i = 14; i < 14 + 24; i += 2)
    sum += std::to_integer<std::uint32_t>(report[i]) * 256 +
           std::to_integer<std::uint32_t>(report[i + 1]);
  EXPECT_EQ((sum & 0xFFFFU) + (sum >> 16U), 0xFFFFU);
  EXPECT_EQ(member.next_answer(out, 0s), 0);
  EXPECT_NE(member.next_answer(out, 1s), 0);
  EXPECT_EQ(member.next_answer(out, 2s), 0);
  EXPECT_NE(member.next_answer(out, 61s), 0);
  // A general query of IGMPv2 to 224.0.0.1.
  Bytes query(report.begin(), report.end());
  const std::array<unsigned, 8> igmp{0x11, 100, 0xEE, 0x9B, 0, 0, 0, 0};
  std::ranges::transform(igmp, query.begin() + 38,
                         [](unsigned b) { return static_cast<std::byte>(b); });
  EXPECT_FALSE(take(member, query));
  EXPECT_EQ(member.next_answer(out, 62s), ip::kIgmpFrameBytes);
  query[40] ^= std::byte{1};
  EXPECT_FALSE(take(member, query));
  EXPECT_EQ(member.next_answer(out, 62s), 0);
  EXPECT_EQ(member.write_leave(out), ip::kIgmpFrameBytes);
  EXPECT_EQ(out[14 + 24], std::byte{0x17});
}

}  // namespace
}  // namespace snowfabric
