// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_ethdev.h>
#include <rte_mempool.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"
#include "fabric/eth_port.hpp"
#include "pmd-config/profile.hpp"

namespace snowfabric {

/// How pages leave: copied into an mbuf, or as an external buffer behind a header segment.
enum class TxMode : std::uint8_t { kCopy, kZeroCopy };
[[nodiscard]] std::string_view to_string(TxMode mode) noexcept;

struct MempoolFree {
  void operator()(rte_mempool* pool) const noexcept { rte_mempool_free(pool); }
};
using MempoolPtr = std::unique_ptr<rte_mempool, MempoolFree>;

struct PortConfig {
  Profile profile;
  std::string name;             ///< ethdev name; empty: the only port there is
  unsigned mtu = 0;             ///< 0: the profile's; else exactly this
  std::vector<MacAddr> groups;  ///< to receive; set_groups() changes them later
};

/// MTU a port will have, before EAL init: what was asked for, or the profile's, or the interface's.
/// @param iface  the kernel interface, used where the kernel decides
/// @return EINVAL: the profile cannot, or too small for a page; ENODEV: no such interface;
///         EMSGSIZE: the interface's MTU is less than asked for
[[nodiscard]] Result<unsigned> resolve_mtu(const Profile& profile, const std::string& iface,
                                           unsigned requested);

/// One started ethdev port with one RX queue, one TX queue and the mempool of both. All functions
/// on the main lcore except where noted. Must be gone before the Eal.
class Port {
 public:
  /// @return ENODEV: no port, or several and no name; EMSGSIZE, EINVAL: as resolve_mtu();
  ///         ENOMEM: no room for the mempool; ETIMEDOUT: no link within the profile's link_wait_ms;
  ///         else the errno of the ethdev call named in the text
  [[nodiscard]] static Result<Port> open(const PortConfig& config);

  Port(Port&&) noexcept = default;
  Port& operator=(Port&&) = delete;
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;
  ~Port();

  [[nodiscard]] std::uint16_t port_id() const noexcept { return port_id_; }
  [[nodiscard]] EthPort queue() const noexcept { return {port_id_, 0}; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const char* driver() const noexcept { return info_.driver_name; }
  /// Source address for our frames: the device's, or a random local one where it has none (a Linux
  /// bridge drops frames from 00:00:00:00:00:00).
  [[nodiscard]] const MacAddr& mac() const noexcept { return mac_; }
  [[nodiscard]] unsigned mtu_bytes() const noexcept { return mtu_; }
  [[nodiscard]] std::size_t nb_fragments() const noexcept;  ///< frames a page
  [[nodiscard]] rte_mempool* pool() const noexcept { return pool_.get(); }
  [[nodiscard]] bool link_up() const noexcept;

  [[nodiscard]] bool can_multi_seg() const noexcept { return multi_segs_; }
  /// Makes memory known to the device, for zero-copy TX; nothing to do on virtual devices. The
  /// memory must be writable where the driver maps it so (vfio does), stay mapped and outlive the
  /// port. Afterwards its bus address is its virtual address.
  /// @return EINVAL: not page-aligned; ENOTSUP: IOVA is not VA; else of rte_extmem_register or
  ///         rte_dev_dma_map. The caller then sends copies.
  [[nodiscard]] Result<void> register_memory(std::span<const std::byte> memory);
  /// kZeroCopy: the device takes several segments, the profile allows it, and a real device has had
  /// memory registered.
  [[nodiscard]] TxMode tx_mode() const noexcept;

  /// Receives these groups from now on, and no others of the former call.
  /// @return the way that worked; it never fails, because kSoftware always works
  MulticastFilter set_groups(std::vector<MacAddr> groups);
  [[nodiscard]] MulticastFilter multicast_filter() const noexcept { return filter_; }

  /// An fd that is readable when frames wait, or -1. Any lcore.
  [[nodiscard]] int wait_fd() const noexcept { return wait_fd_; }
  /// Around a sleep on wait_fd(), because an RX interrupt fires only while armed; nothing to do on
  /// kernel sockets. The lcore that polls the queue.
  /// @{
  void arm_rx_interrupt() const noexcept;
  /// wait_fd() tells of frames only between these two.
  [[nodiscard]] bool has_rx_interrupt() const noexcept { return rx_interrupt_; }
  void disarm_rx_interrupt() const noexcept;
  /// @}

  /// Frames the kernel dropped for this port since it was opened; nullopt where there is no kernel
  /// socket to ask (see rte_eth_stats then). Any thread.
  [[nodiscard]] std::optional<std::uint64_t> kernel_drops() const noexcept;

  /// mbufs outside the pool now: in the device, in flight or leaked. Any thread, approximate.
  [[nodiscard]] unsigned mbufs_in_use() const noexcept;
  /// Stops and closes the device; after it only mbufs_in_use() and accessors may be called.
  /// @return mbufs that did not come back to the pool: 0 unless someone keeps or lost some, and
  ///         always 0 where the profile says the device keeps some itself
  unsigned close() noexcept;

  /// "net_af_packet0: driver net_af_packet, MTU 9000, 1 frame a page, zero-copy TX, ..."
  [[nodiscard]] std::string describe() const;

 private:
  Port() = default;
  Result<void> find(const std::string& name);
  Result<void> set_mtu(unsigned requested);
  Result<void> make_pool();
  Result<void> configure();
  Result<void> set_up_queues();
  Result<void> wait_for_link() const;
  void find_wait_fd();
  void find_mac() noexcept;
  bool try_filter(MulticastFilter filter) noexcept;
  void undo_filter() noexcept;
  [[nodiscard]] std::unexpected<Error> failed(const char* call, int status) const;

  /// Marks this object as the owner of the open port; a moved-from Port has none.
  struct Live {
    bool started = false;
    std::atomic<std::uint64_t> kernel_drops{0};
  };

  MempoolPtr pool_;
  std::unique_ptr<Live> live_;
  Profile profile_;
  std::string name_;
  rte_eth_dev_info info_{};
  std::uint16_t port_id_ = 0;
  MacAddr mac_;
  unsigned mtu_ = 0;
  bool multi_segs_ = false;
  bool virtual_device_ = true;
  bool rx_interrupt_ = false;
  int wait_fd_ = -1;
  std::optional<int> packet_fd_;
  std::optional<int> xdp_fd_;
  MulticastFilter filter_ = MulticastFilter::kSoftware;
  std::vector<MacAddr> groups_;
  std::vector<std::span<const std::byte>> registered_;
};

}  // namespace snowfabric
