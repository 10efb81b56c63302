// SPDX-License-Identifier: BSD-3-Clause
#include "library/dpdk_carrier.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "fabric/wire.hpp"
#include "library/clock.hpp"
#include "library/udp_carrier.hpp"

namespace snowfabric {
namespace {

Result<ip::Address> address_of(const std::string& text, bool is_multicast) {
  in_addr address{};
  if (::inet_pton(AF_INET, text.c_str(), &address) != 1 ||
      IN_MULTICAST(ntohl(address.s_addr)) != is_multicast)
    return fail(EINVAL, fmt::format("'{}' is no IPv4 {}", text,
                                    is_multicast ? "multicast address" : "address of a host"));
  return ip::Address{ntohl(address.s_addr)};
}

/// Without the port's MAC, which is not known before EAL is there.
Result<IpMember::Config> member_config(const IpOptions& options, Side side,
                                       std::uint64_t image_id) {
  if (options.port == 0 || options.port > 65533)
    return fail(EINVAL, fmt::format("UDP port {}: it and the next two are used", options.port));
  const auto own = address_of(options.address, false);
  if (!own) return std::unexpected(own.error());
  auto group = options.group.empty() ? ip::Address{ntohl(udp_group(image_id).s_addr)}
                                     : address_of(options.group, true);
  if (!group) return std::unexpected(group.error());
  return IpMember::Config{.own = {{}, *own},
                          .group = *group,
                          .port = options.port,
                          .side = side,
                          .image_id = image_id,
                          .ttl = options.ttl};
}

}  // namespace

Result<std::unique_ptr<Carrier>> DpdkCarrier::open(const DpdkOptions& options, Side side,
                                                   std::uint64_t image_id) {
  std::optional<IpMember::Config> ip_config;
  if (options.ip) {  // looked at before EAL starts, which it does once only
    const auto config = member_config(*options.ip, side, image_id);
    if (!config) return std::unexpected(config.error());
    ip_config = *config;
  }
  AppOptions app;
  app.profile = options.profile;
  app.device = options.device;
  app.mtu = options.mtu_bytes;
  app.eal_args = {"--no-telemetry"};
  std::vector<MacAddr> groups;
  if (ip_config)
    groups = {ip::multicast_mac(ip_config->group), ip::multicast_mac(ip::kAllHosts)};
  else if (side == Side::kClient)
    groups = {group_address(image_id)};
  auto path =
      start_datapath(app, "libsnowfabric", side == Side::kServer ? "server" : "client", groups);
  if (!path) return std::unexpected(path.error());
  const std::size_t overhead = ip_config ? ip::kHeaderBytes : 0;
  const std::size_t mtu = path->port.mtu_bytes() - overhead;
  if (wire::fragments_for_mtu(mtu) == 0)
    return fail(EMSGSIZE, fmt::format("an MTU of {} is too small for a page in {} frames",
                                      path->port.mtu_bytes(), wire::kMaxFragments));
  std::optional<IpMember> member;
  if (ip_config) {
    ip_config->own.mac = path->port.mac();
    member.emplace(*ip_config);
  }
  return std::unique_ptr<Carrier>{
      new DpdkCarrier{std::move(*path), std::move(member), static_cast<std::uint16_t>(mtu)}};
}

DpdkCarrier::~DpdkCarrier() {
  if (ip_) leave(*ip_);
  rte_pktmbuf_free_bulk(burst_.data(), nb_rx_);
  rte_pktmbuf_free(spare_);
}

std::span<const Carrier::Received> DpdkCarrier::receive() noexcept {
  rte_pktmbuf_free_bulk(burst_.data(), nb_rx_);
  nb_rx_ = queue_.rx_burst(burst_);
  for (std::uint16_t i = 0; i < nb_rx_; ++i) {
    const rte_mbuf& mbuf = *burst_[i];
    // Others' frames are handed on too, as frames of nothing: fewer than a burst means that none is
    // left.
    received_[i] = {.src = {}, .payload = {}, .wire_bytes = mbuf.pkt_len};
    wire::EthHdr eth;
    if (!read_eth(mbuf, eth)) continue;
    const auto packet = gather(mbuf, gathered_[i]);
    if (ip_) {
      if (const auto taken = ip_->take(eth, packet)) {
        received_[i].src = taken->src;
        received_[i].payload = taken->payload;
      }
    } else if (eth.type.host() == wire::kEtherType && !eth.src.is_multicast()) {
      received_[i].src = eth.src;
      received_[i].payload = packet;
    }
  }
  return std::span{received_}.first(nb_rx_);
}

std::span<std::byte> DpdkCarrier::room() noexcept {
  if (tail_.room() == 0) return {};
  if (spare_ == nullptr) spare_ = rte_pktmbuf_alloc(path_.port.pool());
  if (spare_ == nullptr) {
    no_mbuf_.add(1);
    return {};
  }
  return {rte_pktmbuf_mtod(spare_, std::byte*), rte_pktmbuf_tailroom(spare_)};
}

void DpdkCarrier::push(std::size_t nb_bytes,
                       std::span<const std::span<const std::byte>> tail) noexcept {
  rte_mbuf* const mbuf = std::exchange(spare_, nullptr);
  for (const auto& part : tail) {
    std::memcpy(rte_pktmbuf_mtod_offset(mbuf, std::byte*, nb_bytes), part.data(), part.size());
    nb_bytes += part.size();
  }
  mbuf->data_len = static_cast<std::uint16_t>(nb_bytes);
  mbuf->pkt_len = mbuf->data_len;
  if (ip_) {
    auto* const begin = reinterpret_cast<std::byte*>(rte_pktmbuf_prepend(mbuf, ip::kHeaderBytes));
    ip_->wrap({begin, mbuf->data_len}, nb_bytes);
  }
  tx_bytes_.add(mbuf->pkt_len);
  RTE_VERIFY(tail_.push(mbuf));  // room() has looked
}

std::size_t DpdkCarrier::flush() noexcept {
  if (ip_) answer(*ip_);
  return tail_.flush(queue_);
}

/// ARP and IGMP.
void DpdkCarrier::answer(IpMember& member) noexcept {
  const Nanos now = monotonic_now();
  for (auto out = room(); !out.empty(); out = room()) {
    const std::size_t nb_bytes = member.next_answer(out, now);
    if (nb_bytes == 0) return;
    send_as_it_is(nb_bytes);
  }
}

void DpdkCarrier::leave(const IpMember& member) noexcept {
  if (const auto out = room(); !out.empty()) send_as_it_is(member.write_leave(out));
  tail_.flush(queue_);
}

void DpdkCarrier::send_as_it_is(std::size_t nb_bytes) noexcept {
  rte_mbuf* const mbuf = std::exchange(spare_, nullptr);
  mbuf->data_len = static_cast<std::uint16_t>(nb_bytes);
  mbuf->pkt_len = mbuf->data_len;
  RTE_VERIFY(tail_.push(mbuf));
}

void DpdkCarrier::sleeping(bool sleeps) noexcept {
  sleeps ? path_.port.arm_rx_interrupt() : path_.port.disarm_rx_interrupt();
}

}  // namespace snowfabric
