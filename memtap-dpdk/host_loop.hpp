// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <span>

#include "fabric/client_engine.hpp"
#include "fabric/stats.hpp"
#include "memtap-dpdk/host.hpp"

namespace snowfabric {

/// What memtap does with frames, faults and time, but for its port: shared by the poll loop and the
/// simulator. One lcore.
class HostLoop {
 public:
  explicit HostLoop(ClientEngine& engine) noexcept : engine_{engine} {}

  /// From now on pages go to this host's clones.
  void serve(Host& host) noexcept { host_ = &host; }

  /// A frame of our EtherType.
  /// @param l2_payload   what follows the Ethernet header
  /// @param frame_bytes  of the whole frame
  /// @return whether it was one to act on
  bool on_frame(const MacAddr& src, std::span<const std::byte> l2_payload, std::size_t frame_bytes,
                Nanos now) noexcept;
  /// A frame that is not even worth that.
  void drop(wire::Drop why) noexcept { drops_.count(why); }
  /// Faults, failures and time-outs. Call when every frame that has arrived was passed in.
  /// @return faults seen
  unsigned ask(Nanos now) noexcept;
  /// A turn that found nothing to do: installs what has gathered.
  void idle(Nanos now) noexcept;

  [[nodiscard]] const DropCounters& drops() const noexcept { return drops_; }

 private:
  void on_page(const wire::Frame& frame, Nanos now) noexcept;
  void on_ranges(const wire::Frame& frame, Nanos now) noexcept;

  ClientEngine& engine_;
  Host* host_ = nullptr;
  DropCounters drops_;
};

}  // namespace snowfabric
