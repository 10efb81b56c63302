// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fabric/base/mac.hpp"
#include "fabric/base/time.hpp"
#include "fabric/idle.hpp"

namespace snowfabric {

enum class Side : std::uint8_t { kServer, kClient };

/// What carries the frames of docs/wire-format.md for a server or client of the library. Engines
/// name members by addresses of six bytes: those of a carrier are its own, but for the image's
/// group and the broadcast address, which reaches servers. One thread uses one.
class Carrier {
 public:
  static constexpr std::size_t kBurst = 32;

  /// Without its Ethernet header.
  struct Received {
    MacAddr src;
    std::span<const std::byte> payload;
    std::size_t wire_bytes;  ///< with all headers, Ethernet's included
  };

  Carrier() = default;
  Carrier(const Carrier&) = delete;
  Carrier& operator=(const Carrier&) = delete;
  virtual ~Carrier() = default;

  /// @return up to kBurst frames, which live until the next call; fewer: there are no more now
  [[nodiscard]] virtual std::span<const Received> receive() noexcept = 0;

  /// Where the next frame is to be written, its Ethernet header included; as long as the longest
  /// frame of this MTU. Empty: flush() first.
  [[nodiscard]] virtual std::span<std::byte> room() noexcept = 0;
  /// Queues what was written there, and behind it bytes from elsewhere. @pre not room().empty()
  /// @param tail  at most two; they must stay as they are until flush() has sent them
  virtual void push(std::size_t nb_bytes,
                    std::span<const std::span<const std::byte>> tail) noexcept = 0;
  /// Sends what is queued as far as the link takes it. @return frames sent or refused
  virtual std::size_t flush() noexcept = 0;
  [[nodiscard]] virtual bool has_queued() const noexcept = 0;

  /// Readable when frames have come; -1: nothing tells.
  [[nodiscard]] virtual int wait_fd() const noexcept = 0;
  virtual void sleeping(bool /*sleeps*/) noexcept {}  ///< around a wait for it
  /// The same for others' loops, which do not say when they sleep.
  [[nodiscard]] virtual int poll_fd() const noexcept { return wait_fd(); }
  [[nodiscard]] virtual IdleConfig idle() const noexcept { return {}; }
  [[nodiscard]] virtual MacAddr address() const noexcept = 0;
  [[nodiscard]] virtual std::uint16_t mtu_bytes() const noexcept = 0;  ///< of a frame's payload
  /// Of a frame on the wire beyond its Ethernet header and payload.
  [[nodiscard]] virtual std::size_t overhead_bytes() const noexcept = 0;
  /// Frames that the link refused for good, or for which there was no memory. Any thread.
  [[nodiscard]] virtual std::uint64_t nb_failed() const noexcept = 0;
  /// Bytes of frames sent, all headers included. Any thread.
  [[nodiscard]] virtual std::uint64_t tx_bytes() const noexcept = 0;
};

/// After a turn that found nothing to do: until frames come, or for so long.
inline void wait_for_frames(Carrier& carrier, Idle& idle, Nanos most) noexcept {
  const std::array fds{carrier.wait_fd()};
  const bool sleeps = idle.about_to_sleep();
  if (sleeps) carrier.sleeping(true);
  idle.miss(fds, most);
  if (sleeps) carrier.sleeping(false);
}

}  // namespace snowfabric
