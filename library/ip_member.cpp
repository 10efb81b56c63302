// SPDX-License-Identifier: BSD-3-Clause
#include "library/ip_member.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

namespace snowfabric {
namespace {

/// RFC 2236 repeats the first report in case it is lost. The others are for switches whose querier
/// was away. A report of another member is no reason to leave out ours: switches that snoop want
/// all.
constexpr Nanos kFirstReports{std::chrono::seconds{1}}, kReports{std::chrono::seconds{60}};
constexpr unsigned kNbFirstReports = 2;

std::uint64_t bits_of(const MacAddr& address) noexcept {
  std::uint64_t bits = 0;
  std::memcpy(&bits, address.bytes.data(), address.bytes.size());
  return bits;
}

}  // namespace

IpMember::IpMember(const Config& config)
    : config_{config},
      own_{config.own.address, static_cast<std::uint16_t>(config.port + 2)},
      listen_port_{
          static_cast<std::uint16_t>(config.port + (config.side == Side::kServer ? 0 : 1))},
      image_group_{group_address(config.image_id)},
      neighbors_(std::size_t{1} << kNeighborBits),
      prng_{bits_of(config.own.mac)} {}

IpMember::Known& IpMember::slot_of(const MacAddr& member) noexcept {
  constexpr std::uint64_t kByGoldenRatio = 0x9E3779B97F4A7C15ULL;  // 2^64: Fibonacci hashing
  return neighbors_[bits_of(member) * kByGoldenRatio >> (64U - kNeighborBits)];
}

std::optional<IpMember::Taken> IpMember::take(const wire::EthHdr& eth,
                                              std::span<const std::byte> packet) noexcept {
  if (eth.type.host() == ip::kArpEtherType) {
    const auto asking = ip::parse_arp_request(packet, own_.address);
    if (asking && nb_asking_ < asking_.size()) asking_[nb_asking_++] = *asking;
    return std::nullopt;
  }
  if (eth.type.host() != ip::kIpv4EtherType || eth.src.is_multicast()) return std::nullopt;
  const auto datagram = ip::parse_datagram(packet);
  if (!datagram) {
    if (const auto within = ip::parse_igmp_query(packet, config_.group))
      queried_ = std::min(queried_.value_or(*within), *within);
    return std::nullopt;
  }
  const bool is_to_all = datagram->dst == ip::Endpoint{config_.group, listen_port_};
  if (datagram->dst != own_ && !is_to_all) return std::nullopt;
  const MacAddr member = ip::member_of(datagram->src);
  if (ip::is_multicast(datagram->src.address) || datagram->src == own_ || member == image_group_ ||
      member == kBroadcast)
    return std::nullopt;
  slot_of(member) = {member, eth.src};
  return Taken{member, datagram->payload};
}

void IpMember::wrap(std::span<std::byte> frame, std::size_t frame_bytes) noexcept {
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data() + ip::kHeaderBytes, sizeof eth);
  ip::Endpoint to{config_.group, config_.port};
  MacAddr mac = ip::multicast_mac(config_.group);
  if (eth.dst == image_group_) {
    ++to.port;
  } else if (eth.dst != kBroadcast) {
    to = ip::endpoint_of(eth.dst);
    const Known& known = slot_of(eth.dst);
    mac = known.member == eth.dst ? known.mac : kBroadcast;
  }
  eth = {.dst = mac, .src = config_.own.mac, .type = ip::kIpv4EtherType};
  std::memcpy(frame.data(), &eth, sizeof eth);
  ip::write_headers(frame.subspan(sizeof eth), own_, to, frame_bytes - sizeof eth, config_.ttl);
}

std::size_t IpMember::next_answer(std::span<std::byte> out, Nanos now) noexcept {
  if (nb_asking_ > 0) {
    ip::write_arp_reply(out, config_.own, asking_[--nb_asking_]);
    return ip::kArpFrameBytes;
  }
  if (!std::exchange(announced_, true)) {
    ip::write_arp_announcement(out, config_.own);
    return ip::kArpFrameBytes;
  }
  if (const auto within = std::exchange(queried_, std::nullopt);
      within && next_report_ > now + *within)
    next_report_ = now + prng_.below(*within);
  if (now < next_report_) return 0;
  next_report_ = now + (++nb_reports_ < kNbFirstReports ? kFirstReports : kReports);
  ip::write_igmp(out, ip::Igmp::kReport, config_.own, config_.group);
  return ip::kIgmpFrameBytes;
}

std::size_t IpMember::write_leave(std::span<std::byte> out) const noexcept {
  ip::write_igmp(out, ip::Igmp::kLeave, config_.own, config_.group);
  return ip::kIgmpFrameBytes;
}

}  // namespace snowfabric
