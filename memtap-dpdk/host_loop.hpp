// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstddef>
#include <span>

#include "fabric/client_engine.hpp"
#include "fabric/repairs.hpp"
#include "fabric/stats.hpp"
#include "memtap-dpdk/host.hpp"

namespace snowfabric {

/// What memtap does with frames, faults and time, but for its port: shared by the poll loop and the
/// simulator. One lcore.
class HostLoop {
 public:
  explicit HostLoop(ClientEngine& engine) noexcept : engine_{engine}, repairs_{engine} {}

  /// From now on pages go to this host's clones.
  /// @param for_siblings  what other hosts may have; nullptr: nothing
  void serve(Host& host, const RepairSource* for_siblings = nullptr) noexcept {
    host_ = &host;
    repairs_.serve(for_siblings);
  }

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

  /// Writes the next frame to send, if any. @param out  room for the longest frame
  /// @return its bytes, 0 = nothing to send now
  std::size_t next(std::span<std::byte> out, Nanos now) noexcept;
  [[nodiscard]] bool has_output(Nanos now) const noexcept {
    return engine_.has_output(now) || repairs_.has_output(now);
  }
  /// When ask() or next() could do something if no frame or fault comes before.
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept {
    return std::min(engine_.deadline(now), std::max(repairs_.deadline(), now));
  }

  /// Nothing is asked for, and nothing under way.
  [[nodiscard]] bool quiet() const noexcept {
    return engine_.nb_in_flight() == 0 && (host_ == nullptr || host_->quiet());
  }

  [[nodiscard]] const DropCounters& drops() const noexcept { return drops_; }

 private:
  void on_page(const wire::Frame& frame, Nanos now) noexcept;
  void on_ranges(const wire::Frame& frame, Nanos now) noexcept;

  ClientEngine& engine_;
  Repairs repairs_;
  Host* host_ = nullptr;
  DropCounters drops_;
};

}  // namespace snowfabric
