// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "fabric/base/result.hpp"
#include "fabric/base/time.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/wire.hpp"
#include "memserver-dpdk/image.hpp"
#include "tools/bench_guest.hpp"

/// The limit of the library's carrier by kernel sockets: the same frames in the same bursts through
/// the same kind of socket, with nothing decided. A page that is lost stays lost.
namespace snowfabric::bench {

struct SocketOptions {
  std::string interface;
  std::uint16_t mtu_bytes = 9000;  ///< of IP packets
  double pages_per_s = 0;          ///< 0: as fast as the socket takes them
};

/// Where senders send to and receivers listen.
[[nodiscard]] sockaddr_in socket_group() noexcept;

/// Sends every page of an image once, in ascending order, to a group; two a frame where the MTU
/// allows.
class SocketSender {
 public:
  /// @param image  borrowed
  /// @return ENODEV: no such interface; EINVAL: the MTU is too small for a page; or what socket(2)
  ///         or setsockopt(2) reported
  [[nodiscard]] static Result<SocketSender> open(const SocketOptions& options, const Image& image);

  /// Until the last page is with the socket, or `stop`.
  /// @return errno of sendmmsg(2): EMSGSIZE if the interface's MTU is below ours
  [[nodiscard]] Result<void> run(const std::atomic<bool>& stop) noexcept;

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return next_page_; }
  [[nodiscard]] std::uint64_t nb_frames() const noexcept { return seq_; }
  [[nodiscard]] double seconds() const noexcept { return seconds_; }

 private:
  static constexpr std::size_t kBurst = 64;  // as many as the carrier queues

  struct Frame {
    std::array<std::byte, wire::kPairHeaderBytes> header;
    std::array<iovec, 3> parts;
  };

  SocketSender(const SocketOptions& options, const Image& image, UniqueFd socket);
  [[nodiscard]] bool done() const noexcept { return next_page_ == image_->nb_pages(); }
  [[nodiscard]] std::size_t fill() noexcept;
  [[nodiscard]] std::size_t write_next(Frame& frame) noexcept;
  [[nodiscard]] Result<void> send(std::size_t nb_frames) noexcept;

  const Image* image_;
  UniqueFd socket_;
  double pages_per_s_;
  std::size_t nb_fragments_;
  bool pairs_;
  std::vector<Frame> frames_;
  std::vector<mmsghdr> messages_;
  sockaddr_in to_;
  std::uint64_t next_page_ = 0;
  std::size_t next_fragment_ = 0;
  std::uint32_t seq_ = 0;
  double seconds_ = 0;
};

/// Checks every page that comes and puts it to its place.
class SocketReceiver {
 public:
  /// @param arena  borrowed
  /// @return ENODEV: no such interface; or what socket(2), setsockopt(2) or bind(2) reported
  [[nodiscard]] static Result<SocketReceiver> open(const SocketOptions& options, Arena& arena);

  /// Until every page came, `stop`, or nothing has come for `silence` after the first frame.
  /// @return errno of recvmmsg(2), or of a page that could not be written
  [[nodiscard]] Result<void> run(const std::atomic<bool>& stop, Nanos silence) noexcept;

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }  ///< whole and right
  [[nodiscard]] std::uint64_t nb_frames() const noexcept { return nb_frames_; }
  [[nodiscard]] std::uint64_t nb_bad() const noexcept { return nb_bad_; }  ///< wrong checksum
  [[nodiscard]] std::uint64_t nb_foreign() const noexcept { return nb_foreign_; }
  /// Frames missing before the last that came.
  [[nodiscard]] std::uint64_t nb_lost() const noexcept { return next_seq_ - nb_frames_; }
  [[nodiscard]] double seconds() const noexcept;  ///< from the first frame to the last

 private:
  static constexpr std::size_t kBurst = 32;  // as many as the carrier takes

  SocketReceiver(UniqueFd socket, Arena& arena);
  void take(std::span<const std::byte> datagram) noexcept;
  void take_page(const wire::Frame& frame) noexcept;
  void finish(Gfn page, std::span<const std::byte> bytes, std::uint32_t crc) noexcept;

  UniqueFd socket_;
  Arena* arena_;
  std::vector<std::array<std::byte, wire::kMaxFrameBytes>> buffers_;
  std::vector<iovec> into_;
  std::vector<mmsghdr> messages_;
  std::array<std::byte, kPageSize> page_{};  // that fragments are put together in
  std::uint64_t current_page_ = ~std::uint64_t{0};
  unsigned have_ = 0;  // fragments of it
  std::uint64_t nb_pages_ = 0, nb_frames_ = 0, nb_bad_ = 0, nb_foreign_ = 0, next_seq_ = 0;
  Nanos first_at_ = kNever, last_at_ = kNever;
};

}  // namespace snowfabric::bench
