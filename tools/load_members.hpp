// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fabric/client_engine.hpp"
#include "fabric/loss_meter.hpp"

namespace snowfabric::bench {

/// Tells a frame of the group sequence from a second copy, which would hide that another is lost.
class LoadSequence {
 public:
  [[nodiscard]] bool is_new(std::uint32_t seq) noexcept {
    const std::uint32_t nb_before = meter_.received();
    meter_.on_seq(seq);
    return meter_.received() != nb_before;
  }

 private:
  LossMeter meter_;
};

/// A memtap that is emulated: its engine, and what has come for it.
struct LoadMember {
  LoadMember(const ClientConfig& config) : engine{config, stats} {}

  ClientStats stats;
  ClientEngine engine;
  std::uint64_t nb_frames = 0;  ///< to the group that it took, from the current server, each once
};

/// Many memtaps behind one port, each with an address of its own. Pure: no I/O, no clock. One
/// lcore.
class LoadMembers {
 public:
  /// @param trial  the image they join
  LoadMembers(std::uint32_t nb_members, std::uint64_t trial, std::uint16_t mtu_bytes,
              const MacAddr& server, std::uint64_t seed);

  /// Locally administered, none of the lab's and no group.
  [[nodiscard]] static MacAddr mac_of(std::uint32_t member) noexcept {
    return {{0x02, 0x53, 0x4c, 0x00, static_cast<std::uint8_t>(member >> 8U),
             static_cast<std::uint8_t>(member)}};
  }
  /// Whose address it is. @return nullopt: nobody's
  [[nodiscard]] std::optional<std::uint32_t> member_of(const MacAddr& mac) const noexcept;

  /// A frame to a group or to all goes to each member, any other to the one whose address it has.
  /// @return why the first of them dropped it; kForeignImage: it is nobody's
  wire::Drop on_frame(const wire::Frame& frame, const MacAddr& dst, const MacAddr& src,
                      std::size_t frame_bytes, Nanos now);

  /// The next frame that one of the next `nb_looked_at` members sends, who take turns in it so that
  /// a turn of the loop stays short. @return its bytes; 0: none
  /// @param drained  all that has come was passed in: what timed out may be asked for again
  std::size_t next(std::span<std::byte> out, unsigned& nb_looked_at, bool drained, Nanos now);

  [[nodiscard]] std::size_t nb_joined() const noexcept;
  [[nodiscard]] bool any_mtu_too_small() const noexcept;
  [[nodiscard]] std::span<const std::unique_ptr<LoadMember>> all() const noexcept {
    return members_;
  }

 private:
  std::vector<std::unique_ptr<LoadMember>> members_;
  LoadSequence sequence_;  // one for all: they share the port
  std::size_t turn_ = 0;   // who is looked at next
};

}  // namespace snowfabric::bench
