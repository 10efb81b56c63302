// SPDX-License-Identifier: BSD-3-Clause
#include "library/ip_frames.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

namespace snowfabric::ip {
namespace {

constexpr std::uint8_t kUdp = 17, kIgmp = 2;
constexpr std::uint16_t kMoreFragments = 0x2000, kOffset = 0x1FFF, kDontFragment = 0x4000;
constexpr std::uint8_t kQuery = 0x11, kReportV2 = 0x16, kLeaveGroup = 0x17;
constexpr Address kAllRouters{0xE0000002};
constexpr std::uint16_t kRequest = 1, kReply = 2;            // of ARP
constexpr Nanos kDelayUnit{std::chrono::milliseconds{100}};  // of IGMP
constexpr std::uint8_t kDelayOfV1 = 100;

struct Ipv4Hdr {
  std::uint8_t version_ihl;  //  0
  std::uint8_t tos;          //  1
  Be16 total_bytes;          //  2
  Be16 id;                   //  4
  Be16 fragment;             //  6
  std::uint8_t ttl;          //  8
  std::uint8_t protocol;     //  9
  Be16 checksum;             // 10
  Be32 src;                  // 12
  Be32 dst;                  // 16
};
static_assert(sizeof(Ipv4Hdr) == 20 && alignof(Ipv4Hdr) == 1);

struct UdpHdr {
  Be16 src;          // 0
  Be16 dst;          // 2
  Be16 total_bytes;  // 4
  Be16 checksum;     // 6  0: none
};
static_assert(sizeof(UdpHdr) == 8 && sizeof(Ipv4Hdr) + sizeof(UdpHdr) == kHeaderBytes);

struct IgmpMessage {
  std::uint8_t type;       // 0
  std::uint8_t max_delay;  // 1
  Be16 checksum;           // 2
  Be32 group;              // 4
};
static_assert(sizeof(IgmpMessage) == 8);

struct AlertingIpv4Hdr {
  Ipv4Hdr header;
  Be32 router_alert;  // RFC 2113
};
static_assert(sizeof(wire::EthHdr) + sizeof(AlertingIpv4Hdr) + sizeof(IgmpMessage) ==
              kIgmpFrameBytes);

struct ArpPacket {
  Be16 hardware;               //  0  1: Ethernet
  Be16 protocol;               //  2
  std::uint8_t hardware_size;  //  4
  std::uint8_t protocol_size;  //  5
  Be16 operation;              //  6
  MacAddr sender_mac;          //  8
  Be32 sender;                 // 14
  MacAddr target_mac;          // 18
  Be32 target;                 // 24
};
static_assert(sizeof(ArpPacket) == 28 &&
              kArpFrameBytes == sizeof(wire::EthHdr) + sizeof(ArpPacket));

/// RFC 1071. Of whole bytes right with its own checksum it is 0.
std::uint16_t checksum(std::span<const std::byte> bytes) noexcept {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    sum += std::to_integer<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8U : 0U);
  while (sum >> 16U != 0) sum = (sum & 0xFFFFU) + (sum >> 16U);
  return static_cast<std::uint16_t>(~sum);
}

template <class T>
bool read(std::span<const std::byte> from, T& out) noexcept {
  if (from.size() < sizeof out) return false;
  std::memcpy(&out, from.data(), sizeof out);
  return true;
}

template <class T>
std::span<std::byte> put(std::span<std::byte> out, const T& value) noexcept {
  std::memcpy(out.data(), &value, sizeof value);
  return out.subspan(sizeof value);
}

void write_arp(std::span<std::byte> out, const MacAddr& dst, std::uint16_t operation,
               const Neighbor& own, const Neighbor& to) noexcept {
  out = put(out, wire::EthHdr{.dst = dst, .src = own.mac, .type = kArpEtherType});
  put(out, ArpPacket{.hardware = std::uint16_t{1},
                     .protocol = kIpv4EtherType,
                     .hardware_size = sizeof(MacAddr),
                     .protocol_size = sizeof(Be32),
                     .operation = operation,
                     .sender_mac = own.mac,
                     .sender = own.address.value,
                     .target_mac = to.mac,
                     .target = to.address.value});
}

/// What an IPv4 packet carries, if that is whole.
std::optional<std::span<const std::byte>> parse_ipv4(std::span<const std::byte> packet,
                                                     std::uint8_t protocol, Ipv4Hdr& out) noexcept {
  if (!read(packet, out) || out.version_ihl >> 4U != 4 || out.protocol != protocol) return {};
  const std::size_t header_bytes = std::size_t{out.version_ihl} % 16 * 4;
  const std::size_t total_bytes = out.total_bytes.host();
  if (header_bytes < sizeof out || total_bytes < header_bytes || total_bytes > packet.size())
    return {};
  if ((out.fragment.host() & (kMoreFragments | kOffset)) != 0) return {};
  if (checksum(packet.first(header_bytes)) != 0) return {};
  return packet.first(total_bytes).subspan(header_bytes);
}

}  // namespace

MacAddr member_of(const Endpoint& endpoint) noexcept {
  const Be16 port{endpoint.port};
  const Be32 address{endpoint.address.value};
  MacAddr member;
  std::memcpy(member.bytes.data(), &port, sizeof port);
  std::memcpy(member.bytes.data() + sizeof port, &address, sizeof address);
  return member;
}

Endpoint endpoint_of(const MacAddr& member) noexcept {
  Be16 port;
  Be32 address;
  std::memcpy(&port, member.bytes.data(), sizeof port);
  std::memcpy(&address, member.bytes.data() + sizeof port, sizeof address);
  return {{address.host()}, port.host()};
}

MacAddr multicast_mac(Address group) noexcept {
  const auto byte = [&](unsigned shift) { return static_cast<std::uint8_t>(group.value >> shift); };
  return {{0x01, 0x00, 0x5E, static_cast<std::uint8_t>(byte(16) & 0x7FU), byte(8), byte(0)}};
}

std::optional<Datagram> parse_datagram(std::span<const std::byte> packet) noexcept {
  Ipv4Hdr header;
  UdpHdr udp;
  const auto carried = parse_ipv4(packet, kUdp, header);
  if (!carried || !read(*carried, udp)) return std::nullopt;
  const std::size_t total_bytes = udp.total_bytes.host();
  if (total_bytes < sizeof udp || total_bytes > carried->size()) return std::nullopt;
  return Datagram{.src = {{header.src.host()}, udp.src.host()},
                  .dst = {{header.dst.host()}, udp.dst.host()},
                  .payload = carried->first(total_bytes).subspan(sizeof udp)};
}

void write_headers(std::span<std::byte> out, const Endpoint& src, const Endpoint& dst,
                   std::size_t payload_bytes, std::uint8_t ttl) noexcept {
  const auto udp_bytes = static_cast<std::uint16_t>(sizeof(UdpHdr) + payload_bytes);
  Ipv4Hdr header{.version_ihl = 0x45,
                 .tos = 0,
                 .total_bytes = static_cast<std::uint16_t>(sizeof header + udp_bytes),
                 .id = std::uint16_t{0},
                 .fragment = kDontFragment,
                 .ttl = ttl,
                 .protocol = kUdp,
                 .checksum = std::uint16_t{0},
                 .src = src.address.value,
                 .dst = dst.address.value};
  header.checksum = checksum(std::as_bytes(std::span{&header, 1}));
  put(put(out, header), UdpHdr{.src = src.port,
                               .dst = dst.port,
                               .total_bytes = udp_bytes,
                               .checksum = std::uint16_t{0}});
}

// --- ARP -------------------------------------------------------------------------------------

std::optional<Neighbor> parse_arp_request(std::span<const std::byte> packet, Address own) noexcept {
  ArpPacket arp;
  if (!read(packet, arp) || arp.hardware.host() != 1 || arp.protocol.host() != kIpv4EtherType ||
      arp.hardware_size != sizeof(MacAddr) || arp.protocol_size != sizeof(Be32) ||
      arp.operation.host() != kRequest || arp.target.host() != own.value ||
      arp.sender_mac.is_multicast())
    return std::nullopt;
  return Neighbor{arp.sender_mac, {arp.sender.host()}};
}

void write_arp_reply(std::span<std::byte> out, const Neighbor& own, const Neighbor& to) noexcept {
  write_arp(out, to.mac, kReply, own, to);
}

void write_arp_announcement(std::span<std::byte> out, const Neighbor& own) noexcept {
  write_arp(out, kBroadcast, kRequest, own, {MacAddr{}, own.address});
}

// --- IGMP ------------------------------------------------------------------------------------

void write_igmp(std::span<std::byte> out, Igmp type, const Neighbor& own, Address group) noexcept {
  const Address to = type == Igmp::kReport ? group : kAllRouters;
  IgmpMessage message{.type = type == Igmp::kReport ? kReportV2 : kLeaveGroup,
                      .max_delay = 0,
                      .checksum = std::uint16_t{0},
                      .group = group.value};
  message.checksum = checksum(std::as_bytes(std::span{&message, 1}));
  AlertingIpv4Hdr ipv4{.header = {.version_ihl = 0x46,
                                  .tos = 0xC0,
                                  .total_bytes = std::uint16_t{sizeof ipv4 + sizeof message},
                                  .id = std::uint16_t{0},
                                  .fragment = kDontFragment,
                                  .ttl = 1,
                                  .protocol = kIgmp,
                                  .checksum = std::uint16_t{0},
                                  .src = own.address.value,
                                  .dst = to.value},
                       .router_alert = 0x94040000U};
  ipv4.header.checksum = checksum(std::as_bytes(std::span{&ipv4, 1}));
  out = put(out, wire::EthHdr{.dst = multicast_mac(to), .src = own.mac, .type = kIpv4EtherType});
  put(put(out, ipv4), message);
}

std::optional<Nanos> parse_igmp_query(std::span<const std::byte> packet, Address group) noexcept {
  Ipv4Hdr header;
  IgmpMessage message;
  const auto carried = parse_ipv4(packet, kIgmp, header);
  if (!carried || !read(*carried, message) || checksum(*carried) != 0 || message.type != kQuery ||
      (message.group.host() != 0 && message.group.host() != group.value))
    return std::nullopt;
  // From 128 on IGMPv3 means more than this (RFC 3376 section 4.1.1).
  return kDelayUnit * (message.max_delay != 0 ? message.max_delay : kDelayOfV1);
}

}  // namespace snowfabric::ip
