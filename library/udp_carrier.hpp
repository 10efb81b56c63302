// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "fabric/base/counter.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/time.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/wire.hpp"
#include "library/carrier.hpp"

namespace snowfabric {

struct UdpOptions {
  std::string interface{};  ///< empty: as the routes say
  std::string group{};      ///< IPv4 multicast address; empty: udp_group()
  std::uint16_t port = 21318;
  std::uint16_t mtu_bytes = 0;  ///< of IP packets; 0: the interface's, or 1500 without one. Longer
                                ///< ones are not sent: no datagram goes in fragments
  std::uint8_t ttl = 1;
};

/// The group of an image: of the organization-local scope (RFC 2365), by 18 bits of the address
/// that it has on Ethernet.
[[nodiscard]] in_addr udp_group(std::uint64_t image_id) noexcept;

/// Frames in UDP datagrams by kernel sockets: docs/wire-format.md, section "In UDP datagrams".
/// Clients' frames to servers go to the port, those to clients to the one behind it, so that no
/// server gets its own pages back. A member is known by the port and address that it sends from; a
/// server sends to the group from another socket, which datagrams to absent members, that the
/// kernel keeps while it looks for them, cannot fill.
class UdpCarrier final : public Carrier {
 public:
  /// @return ENODEV: no such interface; EMSGSIZE: the MTU is above its; EINVAL: group is no
  ///         multicast address, port or MTU is out of range; EADDRNOTAVAIL: the interface has no
  ///         IPv4 address; or what socket(2), bind(2), setsockopt(2), epoll_ctl(2) reported
  [[nodiscard]] static Result<std::unique_ptr<Carrier>> open(const UdpOptions& options, Side side,
                                                             std::uint64_t image_id);

  [[nodiscard]] std::span<const Received> receive() noexcept override;
  [[nodiscard]] std::span<std::byte> room() noexcept override;
  void push(std::size_t nb_bytes,
            std::span<const std::span<const std::byte>> tail) noexcept override;
  std::size_t flush() noexcept override;
  [[nodiscard]] bool has_queued() const noexcept override { return first_ != end_; }
  [[nodiscard]] int wait_fd() const noexcept override { return epoll_.get(); }
  /// Each look costs system calls, and CPU time that clients of the same host could use: with 200
  /// looks before a sleep 4 of them took twice as long for an image.
  [[nodiscard]] IdleConfig idle() const noexcept override {
    return {.nb_pauses = 0, .nb_yields = 3};
  }
  [[nodiscard]] MacAddr address() const noexcept override { return address_; }
  [[nodiscard]] std::uint16_t mtu_bytes() const noexcept override { return mtu_bytes_; }
  [[nodiscard]] std::size_t overhead_bytes() const noexcept override { return kIpUdpBytes; }
  [[nodiscard]] std::uint64_t nb_failed() const noexcept override { return nb_failed_.read(); }
  [[nodiscard]] std::uint64_t tx_bytes() const noexcept override { return tx_bytes_.read(); }

 private:
  static constexpr std::size_t kIpUdpBytes = 20 + 8;
  static constexpr std::size_t kQueue = 2 * kBurst;
  static constexpr std::size_t kMaxPayload = wire::kMaxFrameBytes;  // longer: not one of ours

  struct Frame {
    std::array<std::byte, wire::kMaxFrameBytes> bytes;
    std::array<iovec, 3> parts;
    sockaddr_in to;
    int socket;  // that it goes by
  };

  UdpCarrier() : frames_(kQueue), buffers_(kBurst) {}
  Result<void> open_own(const UdpOptions& options, int ifindex);
  Result<void> open_group(std::uint16_t port, int ifindex);
  Result<void> loop(bool on) noexcept;
  Result<void> wait_for_both();
  [[nodiscard]] std::size_t receive_from(int fd, std::size_t nb_received) noexcept;
  void see_whether_local(const in_addr& from) noexcept;
  [[nodiscard]] std::size_t nb_alike() const noexcept;
  [[nodiscard]] bool is_stuck() noexcept;
  [[nodiscard]] sockaddr_in to_socket_address(const MacAddr& member) const noexcept;

  UniqueFd own_, group_socket_, epoll_;
  std::array<int, 2> sockets_{};  // both, the one first that was looked at last
  in_addr group_{}, remote_{};    // remote_: who was seen last not to be of this host
  Nanos looked_at_ = kNever;      // for that
  MacAddr image_group_{};
  std::uint16_t port_ = 0, mtu_bytes_ = 0;
  bool is_server_ = false, loops_ = true;
  MacAddr address_{};

  std::vector<Frame> frames_;
  std::array<mmsghdr, kQueue> to_send_{};
  std::size_t first_ = 0, end_ = 0;                   // queued: of frames_ and to_send_
  Nanos stuck_since_ = kNever, refused_at_ = kNever;  // our own socket: first, and last

  std::vector<std::array<std::byte, kMaxPayload>> buffers_;
  std::array<iovec, kBurst> into_{};
  std::array<sockaddr_in, kBurst> from_{};
  std::array<mmsghdr, kBurst> got_{};
  std::array<Received, kBurst> received_{};
  Counter nb_failed_, tx_bytes_;
};

}  // namespace snowfabric
