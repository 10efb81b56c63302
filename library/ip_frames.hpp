// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "fabric/base/endian.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/time.hpp"
#include "fabric/wire.hpp"

/// What a DPDK port needs of IPv4 to be a member of a group of kernel sockets: UDP datagrams,
/// answers to ARP, and IGMP for switches that snoop. Pure.
namespace snowfabric::ip {

/// In host order.
struct Address {
  std::uint32_t value = 0;
  constexpr bool operator==(const Address&) const = default;
};

struct Endpoint {
  Address address{};
  std::uint16_t port = 0;
  constexpr bool operator==(const Endpoint&) const = default;
};

inline constexpr Address kAllHosts{0xE0000001};  ///< whom IGMP queries go to
inline constexpr std::uint16_t kIpv4EtherType = 0x0800;
inline constexpr std::uint16_t kArpEtherType = 0x0806;
inline constexpr std::size_t kHeaderBytes = 20 + 8;  ///< of IPv4 without options and of UDP
inline constexpr std::size_t kArpFrameBytes = sizeof(wire::EthHdr) + 28;
inline constexpr std::size_t kIgmpFrameBytes = sizeof(wire::EthHdr) + 24 + 8;  ///< router alert

/// How engines name an endpoint: port and address, as library/udp_carrier.hpp has it.
[[nodiscard]] MacAddr member_of(const Endpoint& endpoint) noexcept;
[[nodiscard]] Endpoint endpoint_of(const MacAddr& member) noexcept;

/// RFC 1112 section 6.4.
[[nodiscard]] MacAddr multicast_mac(Address group) noexcept;
[[nodiscard]] constexpr bool is_multicast(Address address) noexcept {
  return address.value >> 28U == 0xE;
}

/// A UDP datagram; the payload borrows from what was parsed.
struct Datagram {
  Endpoint src, dst;
  std::span<const std::byte> payload;
};
/// @param packet  what follows the Ethernet header; bytes behind the packet are ignored
/// @return nullopt: no whole and right UDP datagram: another protocol, a fragment, a wrong checksum
///         of the header. UDP's own checksum is not looked at: pages have theirs.
[[nodiscard]] std::optional<Datagram> parse_datagram(std::span<const std::byte> packet) noexcept;

/// Writes IPv4 and UDP headers, without UDP checksum. @param out kHeaderBytes of it
void write_headers(std::span<std::byte> out, const Endpoint& src, const Endpoint& dst,
                   std::size_t payload_bytes, std::uint8_t ttl) noexcept;

struct Neighbor {
  MacAddr mac;
  Address address;
};
/// Who asks by ARP (RFC 826) for the MAC of `own`, if somebody does.
[[nodiscard]] std::optional<Neighbor> parse_arp_request(std::span<const std::byte> packet,
                                                        Address own) noexcept;
/// Writes a whole frame. @param out kArpFrameBytes of it
void write_arp_reply(std::span<std::byte> out, const Neighbor& own, const Neighbor& to) noexcept;
/// The same, to all: whose address it is now (RFC 5227 section 3).
void write_arp_announcement(std::span<std::byte> out, const Neighbor& own) noexcept;

enum class Igmp : std::uint8_t { kReport, kLeave };
/// Writes a whole frame of IGMPv2 (RFC 2236). @param out kIgmpFrameBytes of it
void write_igmp(std::span<std::byte> out, Igmp type, const Neighbor& own, Address group) noexcept;
/// Of a query of IGMP, of any version, for all groups or this, within what time it is to be
/// answered.
/// @return nullopt: the packet is something else
[[nodiscard]] std::optional<Nanos> parse_igmp_query(std::span<const std::byte> packet,
                                                    Address group) noexcept;

}  // namespace snowfabric::ip
