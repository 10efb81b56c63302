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

/// The sum of all 16-bit words, of which a right checksum makes 0xFFFF.
std::uint32_t sum_of(std::span<const std::byte> bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2)
    sum += std::to_integer<std::uint32_t>(bytes[i]) * 256 +
           std::to_integer<std::uint32_t>(bytes[i + 1]);
  sum = (sum & 0xFFFFU) + (sum >> 16U);
  return (sum & 0xFFFFU) + (sum >> 16U);
}

/// With a sum that fits the header as it is.
Bytes with_checksum(Bytes frame) {
  frame[24] = frame[25] = std::byte{0};
  const std::uint32_t sum = ~sum_of(std::span{frame}.subspan(14, 20));
  frame[24] = static_cast<std::byte>(sum >> 8U);
  frame[25] = static_cast<std::byte>(sum);
  return frame;
}

TEST(IpMember, APacketOfAnotherKindIsLeftThoughItsChecksumIsRight) {
  auto from = client();
  auto to = server();
  const Bytes good = wrapped(from, kBroadcast, 10);
  ASSERT_TRUE(take(to, with_checksum(good)));
  struct Change {
    std::size_t at;
    unsigned value;
    const char* what;
  };
  for (const auto& [at, value, what] :
       {Change{14, 0x65, "version 6"}, Change{14, 0x44, "a header of 16 bytes"},
        Change{14, 0x46, "options, and UDP's header 4 bytes short"},
        Change{17, 19, "shorter than its header"}, Change{17, 200, "longer than the frame"},
        Change{20, 0x20, "more fragments follow"}, Change{21, 1, "not the first fragment"},
        Change{23, 6, "TCP"}}) {
    Bytes bad = good;
    bad[at] = static_cast<std::byte>(value);
    EXPECT_FALSE(take(to, with_checksum(bad))) << what;
  }
}

TEST(IpMember, WhoClaimsToBeUsOrAllIsNobody) {
  auto to = server();
  const auto sent_by = [&](const ip::Endpoint& endpoint) {
    auto from = client();
    Bytes frame = wrapped(from, kBroadcast, 10);
    const MacAddr member = ip::member_of(endpoint);  // port, then address
    std::memcpy(frame.data() + 26, member.bytes.data() + 2, 4);
    std::memcpy(frame.data() + 34, member.bytes.data(), 2);
    return take(to, with_checksum(frame)).has_value();
  };
  EXPECT_TRUE(sent_by({kClientIp, 40000}));
  EXPECT_FALSE(sent_by(ip::endpoint_of(to.member())));
  EXPECT_FALSE(sent_by(ip::endpoint_of(kBroadcast)));
  EXPECT_FALSE(sent_by(ip::endpoint_of(group_address(kImageId))));
  EXPECT_FALSE(sent_by({kGroup, 40000}));
}

/// Past its announcement and first report.
void settle(IpMember& member, Nanos now) {
  std::array<std::byte, 64> out{};
  while (member.next_answer(out, now) != 0) {
  }
}

TEST(IpMember, ItAnnouncesItsAddressWhenItStarts) {
  auto member = server();
  std::array<std::byte, 64> out{};
  ASSERT_EQ(member.next_answer(out, 0s), ip::kArpFrameBytes);
  const Bytes frame(out.begin(), out.begin() + ip::kArpFrameBytes);
  EXPECT_EQ(eth_of(frame).dst, kBroadcast);
  const std::array<unsigned, 28> expected{0,  1,  8, 0, 6, 4, 0, 1, 2, 0, 0,  0,  0, 1,
                                          10, 53, 0, 1, 0, 0, 0, 0, 0, 0, 10, 53, 0, 1};
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(frame[14 + i], static_cast<std::byte>(expected[i])) << i;
}

TEST(IpMember, WhoAsksForItsMacIsAnswered) {
  auto member = server();
  std::array<std::byte, 64> out{};
  settle(member, 0s);
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
  ASSERT_EQ(member.next_answer(out, 0s), ip::kArpFrameBytes);
  ASSERT_EQ(member.next_answer(out, 0s), ip::kIgmpFrameBytes);
  // 24 bytes of IPv4 with router alert, then the report; sums by hand.
  const Bytes report(out.begin(), out.begin() + ip::kIgmpFrameBytes);
  EXPECT_EQ(eth_of(report).dst, ip::multicast_mac(kGroup));
  EXPECT_EQ(report[14], std::byte{0x46});
  EXPECT_EQ(report[14 + 8], std::byte{1});  // TTL
  EXPECT_EQ(report[14 + 9], std::byte{2});  // IGMP
  EXPECT_EQ(report[14 + 24], std::byte{0x16});
  EXPECT_EQ(sum_of(std::span{report}.subspan(14, 24)), 0xFFFFU);
  EXPECT_EQ(sum_of(std::span{report}.subspan(38)), 0xFFFFU);
  const std::array<unsigned, 4> group{0xEF, 0xC2, 0x32, 0xF6};
  for (std::size_t i = 0; i < group.size(); ++i)
    EXPECT_EQ(report[42 + i], static_cast<std::byte>(group[i]));
  EXPECT_EQ(member.next_answer(out, 0s), 0);
  EXPECT_NE(member.next_answer(out, 1s), 0);
  EXPECT_EQ(member.next_answer(out, 2s), 0);
  EXPECT_NE(member.next_answer(out, 61s), 0);
  // A general query of IGMPv2 to 224.0.0.1, to be answered within 10 s.
  Bytes query(report.begin(), report.end());
  const std::array<unsigned, 8> igmp{0x11, 100, 0xEE, 0x9B, 0, 0, 0, 0};
  std::ranges::transform(igmp, query.begin() + 38,
                         [](unsigned b) { return static_cast<std::byte>(b); });
  EXPECT_FALSE(take(member, query));
  EXPECT_EQ(member.next_answer(out, 62s), 0);  // not all members at once
  for (int i = 0; i < 100; ++i) take(member, query);
  int nb_reports = 0;
  for (Nanos now = 62s; now <= 72s; now += 10ms) nb_reports += member.next_answer(out, now) != 0;
  EXPECT_EQ(nb_reports, 1);
  query[40] ^= std::byte{1};
  EXPECT_FALSE(take(member, query));
  EXPECT_EQ(member.next_answer(out, 90s), 0);
  EXPECT_EQ(member.write_leave(out), ip::kIgmpFrameBytes);
  EXPECT_EQ(out[14 + 24], std::byte{0x17});
  EXPECT_EQ(eth_of(Bytes(out.begin(), out.end())).dst, ip::multicast_mac({0xE0000002}));
}

}  // namespace
}  // namespace snowfabric
