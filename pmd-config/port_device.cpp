// SPDX-License-Identifier: BSD-3-Clause
// What a Port sets on its device after the start, and takes back at the end.
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_mbuf.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "fabric/eth_port.hpp"
#include "pmd-config/packet_socket.hpp"
#include "pmd-config/port.hpp"

namespace snowfabric {
namespace {

constexpr std::uint64_t kSmallPage = 4096;

/// rte_ethdev and rte_dev take memory by non-const pointer; TX only reads it.
void* mutable_address(std::span<const std::byte> memory) {
  return const_cast<std::byte*>(memory.data());
}

/// Frames that wait in the device: net_ring's queues belong to nobody once it is closed.
void drain(EthPort port, std::size_t limit) noexcept {
  std::array<rte_mbuf*, kBurst> burst{};
  for (std::size_t nb_freed = 0; nb_freed < limit;) {
    const std::uint16_t nb_rx = port.rx_burst(burst);
    if (nb_rx == 0) return;
    rte_pktmbuf_free_bulk(burst.data(), nb_rx);
    nb_freed += nb_rx;
  }
}

}  // namespace

MulticastFilter Port::set_groups(std::vector<MacAddr> groups) {
  undo_filter();
  groups_ = std::move(groups);
  auto filter = groups_.empty() ? MulticastFilter::kSoftware : profile_.multicast;
  while (!try_filter(filter))
    filter = static_cast<MulticastFilter>(static_cast<std::uint8_t>(filter) + 1);
  return filter_ = filter;
}

bool Port::try_filter(MulticastFilter filter) noexcept {
  switch (filter) {
    case MulticastFilter::kList: {
      // MacAddr is six bytes like rte_ether_addr, which alone has alignment 2
      std::vector<rte_ether_addr> list(groups_.size());
      for (std::size_t i = 0; i < groups_.size(); ++i)
        std::memcpy(list[i].addr_bytes, groups_[i].bytes.data(), sizeof(MacAddr));
      return rte_eth_dev_set_mc_addr_list(port_id_, list.data(),
                                          static_cast<std::uint32_t>(list.size())) == 0;
    }
    case MulticastFilter::kSocket:
      return packet_fd_ && kernel::join_groups(*packet_fd_, info_.if_index, groups_);
    case MulticastFilter::kAllMulticast: return rte_eth_allmulticast_enable(port_id_) == 0;
    case MulticastFilter::kPromiscuous: return rte_eth_promiscuous_enable(port_id_) == 0;
    case MulticastFilter::kSoftware: return true;
  }
  return false;
}

void Port::undo_filter() noexcept {
  switch (filter_) {
    case MulticastFilter::kList: rte_eth_dev_set_mc_addr_list(port_id_, nullptr, 0); break;
    case MulticastFilter::kSocket:
      kernel::leave_groups(packet_fd_.value_or(-1), info_.if_index, groups_);
      break;
    case MulticastFilter::kAllMulticast: rte_eth_allmulticast_disable(port_id_); break;
    case MulticastFilter::kPromiscuous: rte_eth_promiscuous_disable(port_id_); break;
    case MulticastFilter::kSoftware: break;
  }
  filter_ = MulticastFilter::kSoftware;
}

Result<void> Port::register_memory(std::span<const std::byte> memory) {
  if (virtual_device_) return {};
  void* address = mutable_address(memory);
  const auto va = reinterpret_cast<std::uintptr_t>(address);
  if (va % kSmallPage != 0 || memory.size() % kSmallPage != 0 || memory.empty())
    return fail(EINVAL, fmt::format("register_memory({:#x}, {} bytes): not whole pages", va,
                                    memory.size()));
  if (rte_eal_iova_mode() != RTE_IOVA_VA)
    return fail(ENOTSUP,
                "register_memory: bus addresses are physical; switch the IOMMU on and "
                "start with `-- --iova-mode=va`");
  if (rte_extmem_register(address, memory.size(), nullptr, 0, kSmallPage) != 0)
    return fail(rte_errno, fmt::format("rte_extmem_register({:#x}, {} bytes): {}", va,
                                       memory.size(), rte_strerror(rte_errno)));
  if (rte_dev_dma_map(info_.device, address, va, memory.size()) != 0) {
    const int error = rte_errno;
    rte_extmem_unregister(address, memory.size());
    return fail(error, fmt::format("rte_dev_dma_map({}, {:#x}, {} bytes): {}; raise the memlock "
                                   "limit (`ulimit -l unlimited`)",
                                   name_, va, memory.size(), rte_strerror(error)));
  }
  registered_.push_back(memory);
  return {};
}

unsigned Port::close() noexcept {
  if (live_ == nullptr) return 0;
  undo_filter();
  if (live_->started) {
    drain(queue(), UINT16_MAX);
    rte_eth_dev_stop(port_id_);
  }
  for (const auto& memory : registered_) {
    rte_dev_dma_unmap(info_.device, mutable_address(memory),
                      reinterpret_cast<std::uintptr_t>(memory.data()), memory.size());
    rte_extmem_unregister(mutable_address(memory), memory.size());
  }
  registered_.clear();
  rte_eth_dev_close(port_id_);
  live_.reset();
  packet_fd_.reset();
  xdp_fd_.reset();
  wait_fd_ = -1;
  return profile_.returns_mbufs ? mbufs_in_use() : 0;
}

Port::~Port() {
  static_cast<void>(close());  // a leak shows in mbufs_in_use()
  // An mbuf that is still referred to must not lose its memory: the pool then stays until the Eal
  // goes.
  if (mbufs_in_use() == 0) return;
  [[maybe_unused]] const rte_mempool* kept = pool_.release();
}

}  // namespace snowfabric
