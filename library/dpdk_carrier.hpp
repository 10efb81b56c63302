// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/counter.hpp"
#include "fabric/base/result.hpp"
#include "fabric/eth_port.hpp"
#include "library/carrier.hpp"
#include "library/ip_member.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

/// What a port needs to be a member of a group of UDP endpoints.
struct IpOptions {
  std::string address{};  ///< IPv4, of the port alone: no kernel's
  std::string group{};    ///< as UdpOptions
  std::uint16_t port = 21318;
  std::uint8_t ttl = 1;
};

struct DpdkOptions {
  std::string profile = "net_af_packet";  ///< name or file: docs/operations.md
  std::string device{};                   ///< kernel interface, PCI address or socket file
  unsigned mtu_bytes = 0;                 ///< 0: the profile's or the interface's
  std::optional<IpOptions> ip{};          ///< none: bare Ethernet
};

/// Frames by a DPDK port: on bare Ethernet as memserver's and memtap's, which may be in the same
/// group, or in UDP datagrams as those of kernel sockets (UdpCarrier), which may. One a process and
/// its life: EAL cannot be started twice. The thread that uses it is the one that made it.
class DpdkCarrier final : public Carrier {
 public:
  /// Frames are the port's: one is held by an mbuf, and so are those that receive() gave last.
  /// @return as start_datapath; EMSGSIZE: no room for a page; EALREADY: not the first one of this
  /// process; EINVAL:
  ///         an option of IP
  [[nodiscard]] static Result<std::unique_ptr<Carrier>> open(const DpdkOptions& options, Side side,
                                                             std::uint64_t image_id);
  ~DpdkCarrier() override;

  [[nodiscard]] std::span<const Received> receive() noexcept override;
  [[nodiscard]] std::span<std::byte> room() noexcept override;
  void push(std::size_t nb_bytes,
            std::span<const std::span<const std::byte>> tail) noexcept override;
  std::size_t flush() noexcept override;
  [[nodiscard]] bool has_queued() const noexcept override { return tail_.size() != 0; }
  void sleeping(bool sleeps) noexcept override;
  [[nodiscard]] IdleConfig idle() const noexcept override { return path_.profile.idle; }
  [[nodiscard]] int wait_fd() const noexcept override { return path_.port.wait_fd(); }
  [[nodiscard]] int poll_fd() const noexcept override {
    return path_.port.has_rx_interrupt() ? -1 : wait_fd();
  }
  [[nodiscard]] MacAddr address() const noexcept override {
    return ip_ ? ip_->member() : path_.port.mac();
  }
  [[nodiscard]] std::uint16_t mtu_bytes() const noexcept override { return mtu_bytes_; }
  [[nodiscard]] std::size_t overhead_bytes() const noexcept override {
    return ip_ ? ip::kHeaderBytes : 0;
  }
  [[nodiscard]] std::uint64_t nb_failed() const noexcept override { return no_mbuf_.read(); }
  [[nodiscard]] std::uint64_t tx_bytes() const noexcept override { return tx_bytes_.read(); }

 private:
  DpdkCarrier(Datapath path, std::optional<IpMember> ip, std::uint16_t mtu_bytes)
      : path_{std::move(path)},
        ip_{std::move(ip)},
        queue_{path_.port.queue()},
        mtu_bytes_{mtu_bytes},
        gathered_(Carrier::kBurst) {}
  void answer(IpMember& member) noexcept;
  void leave(const IpMember& member) noexcept;
  void send_as_it_is(std::size_t nb_bytes) noexcept;

  Datapath path_;
  std::optional<IpMember> ip_;
  EthPort queue_;
  std::uint16_t mtu_bytes_;
  TxTail<> tail_;
  rte_mbuf* spare_ = nullptr;  // what room() is in

  std::array<rte_mbuf*, Carrier::kBurst> burst_{};
  std::uint16_t nb_rx_ = 0;  // of burst_, ours until the next receive()
  std::vector<GatherBuffer> gathered_;
  std::array<Received, Carrier::kBurst> received_{};
  Counter no_mbuf_, tx_bytes_;
};

}  // namespace snowfabric
