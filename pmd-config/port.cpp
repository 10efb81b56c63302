// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/port.hpp"

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ether.h>
#include <rte_mbuf.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <net/if.h>

#include "fabric/wire.hpp"
#include "pmd-config/packet_socket.hpp"

namespace snowfabric {
namespace {

constexpr std::uint16_t kQueue = 0;

std::string iface_of(unsigned if_index) {
  std::array<char, IF_NAMESIZE> name{};
  return if_index != 0 && if_indextoname(if_index, name.data()) != nullptr ? name.data() : "";
}

/// Largest MTU ethdev will accept: its own rule, see eth_dev_get_overhead_len in rte_ethdev.c.
unsigned ethdev_max_mtu(const rte_eth_dev_info& info) {
  constexpr unsigned kOverhead = RTE_ETHER_HDR_LEN + RTE_ETHER_CRC_LEN;
  if (info.max_mtu != UINT16_MAX) return info.max_mtu;
  return info.max_rx_pktlen > kOverhead ? info.max_rx_pktlen - kOverhead : 0;
}

Result<void> check_mtu(const Profile& profile, unsigned mtu) {
  if (mtu > profile.max_mtu)
    return fail(EINVAL, fmt::format("MTU {} is more than profile {} can carry: --mtu {} or less",
                                    mtu, profile.name, profile.max_mtu));
  if (wire::fragments_for_mtu(mtu) == 0)
    return fail(EINVAL, fmt::format("MTU {} is too small for a page in {} fragments", mtu,
                                    wire::kMaxFragments));
  return {};
}

}  // namespace

std::string_view to_string(TxMode mode) noexcept {
  return mode == TxMode::kZeroCopy ? "zero-copy" : "copy";
}

Result<unsigned> resolve_mtu(const Profile& profile, const std::string& iface, unsigned requested) {
  unsigned mtu = requested != 0 ? requested : profile.mtu;
  if (profile.mtu_by == MtuBy::kKernel) {
    if (iface.empty())
      return fail(ENODEV,
                  fmt::format("profile {} needs a kernel interface: --device NAME (`ip link` "
                              "lists them)",
                              profile.name));
    const Result<unsigned> kernel = kernel::interface_mtu(iface);
    if (!kernel) return kernel;
    if (mtu == 0) mtu = std::min(*kernel, profile.max_mtu);
    if (mtu > *kernel)
      return fail(EMSGSIZE,
                  fmt::format("interface {} has MTU {}, {} is asked for: `ip link set dev "
                              "{} mtu {}`, or --mtu {}",
                              iface, *kernel, mtu, iface, mtu, *kernel));
  }
  if (const auto ok = check_mtu(profile, mtu); !ok) return std::unexpected(ok.error());
  return mtu;
}

std::unexpected<Error> Port::failed(const char* call, int status) const {
  const int error = status < 0 ? -status : status;
  return fail(error, fmt::format("{}({}): {}", call, name_, rte_strerror(error)));
}

Result<void> Port::find(const std::string& name) {
  const unsigned nb_ports = rte_eth_dev_count_avail();
  if (nb_ports == 0)
    return fail(ENODEV, fmt::format("no port: EAL found no device of profile {}; `tools/doctor "
                                    "--profile {}` says what is missing",
                                    profile_.name, profile_.name));
  if (name.empty() && nb_ports != 1)
    return fail(ENODEV, fmt::format("{} ports: name one of them", nb_ports));
  port_id_ = static_cast<std::uint16_t>(rte_eth_find_next_owned_by(0, RTE_ETH_DEV_NO_OWNER));
  if (!name.empty() && rte_eth_dev_get_port_by_name(name.c_str(), &port_id_) != 0)
    return fail(ENODEV, fmt::format("no port named '{}'", name));
  std::array<char, RTE_ETH_NAME_MAX_LEN> found{};
  if (rte_eth_dev_get_name_by_port(port_id_, found.data()) == 0) name_ = found.data();
  if (const int status = rte_eth_dev_info_get(port_id_, &info_); status != 0)
    return failed("rte_eth_dev_info_get", status);
  const rte_bus* bus = info_.device != nullptr ? rte_dev_bus(info_.device) : nullptr;
  virtual_device_ = bus == nullptr || std::string_view{rte_bus_name(bus)} == "vdev";
  return {};
}

Result<void> Port::set_mtu(unsigned requested) {
  const Result<unsigned> mtu = resolve_mtu(profile_, iface_of(info_.if_index), requested);
  if (!mtu) return std::unexpected(mtu.error());
  mtu_ = *mtu;
  const unsigned most = ethdev_max_mtu(info_);
  if (profile_.mtu_by == MtuBy::kEthdev && mtu_ > most)
    return fail(EINVAL, fmt::format("MTU {} is more than {} ({}) takes: --mtu {}", mtu_, name_,
                                    info_.driver_name, most));
  return {};
}

Result<void> Port::make_pool() {
  constexpr unsigned kCache = 64;
  const std::uint16_t room = mbuf_room_bytes(profile_, mtu_);
  if (const std::size_t least = RTE_PKTMBUF_HEADROOM + max_frame_bytes(mtu_); room < least)
    return fail(EINVAL, fmt::format("mbuf_room_bytes {} of profile {} has no room for a frame of "
                                    "MTU {}: {} at least, or 0",
                                    room, profile_.name, mtu_, least));
  const std::string pool = fmt::format("port{}", port_id_);
  pool_.reset(rte_pktmbuf_pool_create(pool.c_str(), profile_.nb_mbufs, kCache, 0, room,
                                      rte_eth_dev_socket_id(port_id_)));
  if (pool_ == nullptr)
    return fail(rte_errno, fmt::format("rte_pktmbuf_pool_create({}, n={}, room={}): {}; give EAL "
                                       "more memory: `-- -m MB`, or more hugepages",
                                       pool, profile_.nb_mbufs, room, rte_strerror(rte_errno)));
  return {};
}

Result<void> Port::configure() {
  rte_eth_conf conf{};
  // Left at 0 where ethdev does not decide: net_af_packet would set it on the kernel interface.
  if (profile_.mtu_by == MtuBy::kEthdev) conf.rxmode.mtu = mtu_;
  multi_segs_ = profile_.multi_segs && (info_.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS) != 0;
  if (multi_segs_) conf.txmode.offloads |= RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
  if ((info_.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER) != 0)
    conf.rxmode.offloads |= RTE_ETH_RX_OFFLOAD_SCATTER;
  conf.intr_conf.rxq = profile_.rx_interrupts ? 1 : 0;
  if (const int status = rte_eth_dev_configure(port_id_, 1, 1, &conf); status != 0)
    return failed("rte_eth_dev_configure", status);
  if (profile_.mtu_by != MtuBy::kEthdev) return {};
  const int status = rte_eth_dev_set_mtu(port_id_, static_cast<std::uint16_t>(mtu_));
  // a driver without the call takes what rte_eth_dev_configure was given
  if (status != 0 && status != -ENOTSUP) return failed("rte_eth_dev_set_mtu", status);
  return {};
}

Result<void> Port::set_up_queues() {
  std::uint16_t nb_rxd = profile_.nb_rxd;
  std::uint16_t nb_txd = profile_.nb_txd;
  const int socket = rte_eth_dev_socket_id(port_id_);
  if (const int status = rte_eth_dev_adjust_nb_rx_tx_desc(port_id_, &nb_rxd, &nb_txd); status != 0)
    return failed("rte_eth_dev_adjust_nb_rx_tx_desc", status);
  const auto numa = static_cast<unsigned>(socket);  // -1 becomes SOCKET_ID_ANY
  if (const int status =
          rte_eth_rx_queue_setup(port_id_, kQueue, nb_rxd, numa, nullptr, pool_.get());
      status != 0)
    return failed("rte_eth_rx_queue_setup", status);
  if (const int status = rte_eth_tx_queue_setup(port_id_, kQueue, nb_txd, numa, nullptr);
      status != 0)
    return failed("rte_eth_tx_queue_setup", status);
  return {};
}

bool Port::link_up() const noexcept {
  rte_eth_link link{};
  return rte_eth_link_get_nowait(port_id_, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}

Result<void> Port::wait_for_link() const {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds{profile_.link_wait_ms};
  while (profile_.link_wait_ms != 0 && !link_up()) {
    if (Clock::now() >= deadline)
      return fail(ETIMEDOUT,
                  fmt::format("{}: no link after {} ms: check the cable, or `ip link set "
                              "dev IFACE up`",
                              name_, profile_.link_wait_ms));
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  return {};
}

void Port::find_wait_fd() {
  if (info_.if_index != 0) packet_fd_ = kernel::find_packet_socket(info_.if_index);
  if (std::string_view{info_.driver_name} == "net_af_xdp") xdp_fd_ = kernel::find_xdp_socket();
  wait_fd_ = packet_fd_.value_or(xdp_fd_.value_or(-1));
  if (wait_fd_ >= 0 || !profile_.rx_interrupts) return;
  wait_fd_ = std::max(rte_eth_dev_rx_intr_ctl_q_get_fd(port_id_, kQueue), -1);
  rx_interrupt_ = wait_fd_ >= 0;
}

void Port::arm_rx_interrupt() const noexcept {
  if (rx_interrupt_) rte_eth_dev_rx_intr_enable(port_id_, kQueue);
}

void Port::disarm_rx_interrupt() const noexcept {
  if (!rx_interrupt_) return;
  rte_eth_dev_rx_intr_disable(port_id_, kQueue);
  std::uint64_t fired = 0;  // an eventfd: reading makes it wait again; EAGAIN when it did not fire
  [[maybe_unused]] const ssize_t ignored = read(wait_fd_, &fired, sizeof fired);
}

void Port::find_mac() noexcept {
  rte_ether_addr address{};
  rte_eth_macaddr_get(port_id_, &address);
  if (rte_is_zero_ether_addr(&address)) rte_eth_random_addr(address.addr_bytes);
  std::memcpy(mac_.bytes.data(), address.addr_bytes, sizeof mac_);
}

Result<Port> Port::open(const PortConfig& config) {
  Port port;
  port.profile_ = config.profile;
  Result<void> done = port.find(config.name);
  if (done) done = port.set_mtu(config.mtu);
  if (done) done = port.make_pool();
  if (!done) return std::unexpected(done.error());
  port.live_ = std::make_unique<Live>();  // from here on the destructor closes the device
  done = port.configure();
  if (done) done = port.set_up_queues();
  if (!done) return std::unexpected(done.error());
  if (const int status = rte_eth_dev_start(port.port_id_); status != 0)
    return port.failed("rte_eth_dev_start", status);
  port.live_->started = true;
  port.find_mac();
  port.find_wait_fd();
  port.set_groups(config.groups);
  done = port.wait_for_link();
  if (!done) return std::unexpected(done.error());
  return port;
}

std::size_t Port::nb_fragments() const noexcept { return wire::fragments_for_mtu(mtu_); }

TxMode Port::tx_mode() const noexcept {
  const bool can = multi_segs_ && profile_.zero_copy && (virtual_device_ || !registered_.empty());
  return can ? TxMode::kZeroCopy : TxMode::kCopy;
}

std::optional<std::uint64_t> Port::kernel_drops() const noexcept {
  if (live_ == nullptr) return std::nullopt;
  if (xdp_fd_) return kernel::xdp_drops(*xdp_fd_);
  if (!packet_fd_) return std::nullopt;
  return live_->kernel_drops += kernel::take_packet_drops(*packet_fd_);
}

unsigned Port::mbufs_in_use() const noexcept {
  return pool_ == nullptr ? 0 : rte_mempool_in_use_count(pool_.get());
}

std::string Port::describe() const {
  return fmt::format("{}: driver {}, MAC {}, MTU {} ({} frame(s) a page), {} TX, multicast: {}{}",
                     name_, driver(), to_string(mac_), mtu_, nb_fragments(), to_string(tx_mode()),
                     to_string(filter_), wait_fd_ >= 0 ? ", waits on an fd" : "");
}

}  // namespace snowfabric
