// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/mac.hpp"
#include "fabric/base/prng.hpp"
#include "fabric/base/time.hpp"
#include "fabric/wire.hpp"
#include "library/carrier.hpp"
#include "library/ip_frames.hpp"

namespace snowfabric {

/// A port without a kernel behind it as a member of a group of UDP endpoints: it puts frames into
/// datagrams and takes them out, answers ARP, and reports its membership by IGMP. Pure.
/// docs/wire-format.md, section "In UDP datagrams".
class IpMember {
 public:
  struct Config {
    ip::Neighbor own;
    ip::Address group;
    std::uint16_t port = 0;  ///< that servers listen to; clients to the next, we send from the one
                             ///< behind that
    Side side = Side::kClient;
    std::uint64_t image_id = 0;
    std::uint8_t ttl = 1;
  };

  explicit IpMember(const Config& config);

  /// As engines know us.
  [[nodiscard]] MacAddr member() const noexcept { return ip::member_of(own_); }

  struct Taken {
    MacAddr src;  ///< as engines know it
    std::span<const std::byte> payload;
  };
  /// A frame that has come. ARP and IGMP are taken note of, for next_answer().
  /// @param packet  what follows the Ethernet header
  /// @return a datagram to us or the group; nullopt: it is anything else
  [[nodiscard]] std::optional<Taken> take(const wire::EthHdr& eth,
                                          std::span<const std::byte> packet) noexcept;

  /// Makes of an engine's frame, whose Ethernet header has a member for destination, a datagram:
  /// the headers go to the front of `frame`, over that header.
  /// @param frame  ip::kHeaderBytes of room, then the engine's frame, which may go on elsewhere
  /// @param frame_bytes  of all of the engine's frame
  void wrap(std::span<std::byte> frame, std::size_t frame_bytes) noexcept;

  /// Writes the next frame that ARP or IGMP ask for, the first of which says who we are to whom
  /// knew another at our address. @return its bytes, 0: none now
  std::size_t next_answer(std::span<std::byte> out, Nanos now) noexcept;
  /// Writes that we leave the group. @return its bytes
  std::size_t write_leave(std::span<std::byte> out) const noexcept;

 private:
  static constexpr unsigned kNeighborBits = 12;
  static constexpr std::size_t kMaxAsking = 8;

  struct Known {
    MacAddr member, mac;
  };
  [[nodiscard]] Known& slot_of(const MacAddr& member) noexcept;

  Config config_;
  ip::Endpoint own_;
  std::uint16_t listen_port_;
  MacAddr image_group_;
  /// Whom we got frames from; one displaces another whose place is the same, and is then reached by
  /// a broadcast.
  std::vector<Known> neighbors_;
  std::array<ip::Neighbor, kMaxAsking> asking_{};  // by ARP
  std::size_t nb_asking_ = 0;
  bool announced_ = false;
  std::optional<Nanos> queried_{};  // since the last look: the shortest time to answer in
  unsigned nb_reports_ = 0;
  Prng prng_;  // members do not all answer a query at once
  Nanos next_report_ = kNever;
};

}  // namespace snowfabric
