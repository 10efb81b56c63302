// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_sockets.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "fabric/crc32c.hpp"
#include "fabric/idle.hpp"
#include "fabric/token_bucket.hpp"
#include "library/clock.hpp"
#include "library/udp_socket.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::size_t kCatchUpBytes = 2 << 20;  // that a sender that waited for a CPU may be late
constexpr IdleConfig kIdle{.nb_pauses = 0, .nb_yields = 3};  // as the carrier has it
constexpr std::size_t kIpUdpBytes = 20 + 8;
constexpr std::uint32_t kGroup = 0xEFC05346;  // 239.192.83.70
constexpr std::uint16_t kPort = 21319;

Result<ip_mreqn> on_interface(const std::string& interface) {
  const auto index = interface_index(interface);
  if (!index) return std::unexpected(index.error());
  return ip_mreqn{
      .imr_multiaddr = {.s_addr = htonl(kGroup)}, .imr_address = {}, .imr_ifindex = *index};
}

}  // namespace

sockaddr_in socket_group() noexcept {
  return {.sin_family = AF_INET,
          .sin_port = htons(kPort),
          .sin_addr = {.s_addr = htonl(kGroup)},
          .sin_zero = {}};
}

// --- sender ----------------------------------------------------------------------------------

SocketSender::SocketSender(const SocketOptions& options, const Image& image, UniqueFd socket)
    : image_{&image},
      socket_{std::move(socket)},
      pages_per_s_{options.pages_per_s},
      nb_fragments_{wire::fragments_for_mtu(options.mtu_bytes - kIpUdpBytes)},
      pairs_{options.mtu_bytes - kIpUdpBytes >= wire::kPairMtuBytes},
      frames_(kBurst),
      messages_(kBurst),
      to_{socket_group()} {}

Result<SocketSender> SocketSender::open(const SocketOptions& options, const Image& image) {
  if (options.mtu_bytes <= kIpUdpBytes ||
      wire::fragments_for_mtu(options.mtu_bytes - kIpUdpBytes) == 0)
    return fail(EINVAL, fmt::format("an MTU of {} is too small for a page in {} frames",
                                    options.mtu_bytes, wire::kMaxFragments));
  const auto through = on_interface(options.interface);
  if (!through) return std::unexpected(through.error());
  auto socket = open_udp_socket(0);
  if (!socket) return std::unexpected(socket.error());
  const int fd = socket->get();
  if (auto ok = set_option(fd, IPPROTO_IP, IP_MULTICAST_IF, *through, "IP_MULTICAST_IF"); !ok)
    return std::unexpected(ok.error());
  if (auto ok =
          set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, int{IP_PMTUDISC_PROBE}, "IP_MTU_DISCOVER");
      !ok)
    return std::unexpected(ok.error());
  return SocketSender{options, image, std::move(*socket)};
}

/// A burst is sent whole once any of it is due: the receivers' buffers hold many.
Result<void> SocketSender::run(const std::atomic<bool>& stop) noexcept {
  const Nanos began = monotonic_now();
  TokenBucket bucket{pages_per_s_ * kPageSize, kCatchUpBytes};
  bucket.charge(kCatchUpBytes);  // nothing is due yet
  Idle idle{kIdle};
  while (!done() && !stop.load(std::memory_order_relaxed)) {
    const Nanos now = monotonic_now();
    bucket.refill(now);
    if (pages_per_s_ > 0 && !bucket.is_ready()) {
      idle.miss({}, bucket.ready_at() - now);
      continue;
    }
    idle.hit();
    const std::uint64_t before = next_page_;
    if (auto ok = send(fill()); !ok) return ok;
    bucket.charge((next_page_ - before) * kPageSize);
  }
  seconds_ = std::chrono::duration<double>(monotonic_now() - began).count();
  return {};
}

/// @return frames: a burst, or what is left
std::size_t SocketSender::fill() noexcept {
  std::size_t nb_frames = 0;
  for (; nb_frames < kBurst && !done(); ++nb_frames) {
    Frame& frame = frames_[nb_frames];
    const std::size_t nb_parts = write_next(frame);
    messages_[nb_frames].msg_hdr = {.msg_name = &to_,
                                    .msg_namelen = sizeof to_,
                                    .msg_iov = frame.parts.data(),
                                    .msg_iovlen = nb_parts,
                                    .msg_control = nullptr,
                                    .msg_controllen = 0,
                                    .msg_flags = 0};
  }
  return nb_frames;
}

/// The next page, two, or a fragment. @return parts: the header, and what lies in the image
std::size_t SocketSender::write_next(Frame& frame) noexcept {
  const wire::Identity identity{image_->image_id(), image_->epoch(), 1, image_->space()};
  const MacAddr group = group_address(image_->image_id());
  const auto key = [this](Gfn gfn) { return wire::PageKey{gfn, image_->crc(gfn)}; };
  const auto part = [](std::span<const std::byte> bytes) {  // sendmmsg does not write there
    return iovec{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
  };
  const Gfn first{next_page_}, second{next_page_ + 1};
  const std::uint32_t seq = seq_++;
  const auto head = [&](std::size_t nb_bytes) {  // Ethernet's header is not in a datagram
    return part(std::span{frame.header}.first(nb_bytes).subspan(sizeof(wire::EthHdr)));
  };
  if (pairs_ && second.value < image_->nb_pages()) {
    frame.parts = {head(wire::write_pair_header(frame.header, identity, group, {}, key(first),
                                                key(second), wire::kFlagSequenced, seq)),
                   part(image_->page(first)), part(image_->page(second))};
    next_page_ += 2;
    return 3;
  }
  const std::size_t offset = next_fragment_ * wire::fragment_stride(nb_fragments_);
  frame.parts[0] =
      head(wire::write_page_header(frame.header, identity, group, {}, first, image_->crc(first),
                                   next_fragment_, nb_fragments_, wire::kFlagSequenced, seq));
  frame.parts[1] = part(
      image_->page(first).subspan(offset, wire::fragment_bytes(next_fragment_, nb_fragments_)));
  if (++next_fragment_ == nb_fragments_) {
    next_fragment_ = 0;
    ++next_page_;
  }
  return 2;
}

Result<void> SocketSender::send(std::size_t nb_frames) noexcept {
  for (std::size_t first = 0; first < nb_frames;) {
    const int nb_sent = ::sendmmsg(socket_.get(), messages_.data() + first,
                                   static_cast<unsigned>(nb_frames - first), 0);
    if (nb_sent > 0)
      first += static_cast<std::size_t>(nb_sent);
    else if (errno != EINTR && errno != ENOBUFS)
      return fail(errno, "sendmmsg");
  }
  return {};
}

// --- receiver --------------------------------------------------------------------------------

SocketReceiver::SocketReceiver(UniqueFd socket, Arena& arena)
    : socket_{std::move(socket)},
      arena_{&arena},
      buffers_(kBurst),
      into_(kBurst),
      messages_(kBurst) {
  for (std::size_t i = 0; i < kBurst; ++i) {
    into_[i] = {.iov_base = buffers_[i].data(), .iov_len = buffers_[i].size()};
    messages_[i].msg_hdr.msg_iov = &into_[i];
    messages_[i].msg_hdr.msg_iovlen = 1;
  }
}

Result<SocketReceiver> SocketReceiver::open(const SocketOptions& options, Arena& arena) {
  const auto join = on_interface(options.interface);
  if (!join) return std::unexpected(join.error());
  auto socket = open_udp_socket(SOCK_NONBLOCK);
  if (!socket) return std::unexpected(socket.error());
  const int fd = socket->get();
  const sockaddr_in group = socket_group();
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&group), sizeof group) != 0)
    return fail(errno, fmt::format("bind UDP port {}", kPort));
  if (auto ok = set_option(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, *join, "IP_ADD_MEMBERSHIP"); !ok)
    return std::unexpected(ok.error());
  return SocketReceiver{std::move(*socket), arena};
}

Result<void> SocketReceiver::run(const std::atomic<bool>& stop, Nanos silence) noexcept {
  const std::array wait_fds{socket_.get()};
  Idle idle{kIdle};
  while (nb_pages_ < arena_->nb_pages() && !stop.load(std::memory_order_relaxed)) {
    const int nb_got = ::recvmmsg(socket_.get(), messages_.data(), kBurst, MSG_DONTWAIT, nullptr);
    if (nb_got < 0 && errno != EAGAIN && errno != EINTR) return fail(errno, "recvmmsg");
    if (nb_got <= 0) {
      if (last_at_ != kNever && monotonic_now() - last_at_ > silence) return {};
      idle.miss(wait_fds);
      continue;
    }
    idle.hit();
    if (first_at_ == kNever) first_at_ = monotonic_now();
    for (std::size_t i = 0; i < static_cast<std::size_t>(nb_got); ++i)
      take(std::span{buffers_[i]}.first(messages_[i].msg_len));
    if (arena_->error() != 0) return fail(arena_->error(), "write a page");
    last_at_ = monotonic_now();
  }
  return {};
}

void SocketReceiver::take(std::span<const std::byte> datagram) noexcept {
  wire::Frame frame;
  if (wire::parse(datagram, frame) != wire::Drop::kNone || frame.type != wire::FrameType::kPage ||
      frame.highest_gfn() >= arena_->nb_pages()) {
    ++nb_foreign_;
    return;
  }
  ++nb_frames_;
  next_seq_ = std::max<std::uint64_t>(next_seq_, std::uint64_t{frame.seq} + 1);
  do take_page(frame);
  while (frame.next_page());
}

void SocketReceiver::take_page(const wire::Frame& frame) noexcept {
  const Gfn page{frame.page.gfn.host()};
  const std::size_t fragment = frame.page.fragment, nb_fragments = frame.page.nb_fragments;
  if (nb_fragments == 1) return finish(page, frame.tail, frame.page.crc32c.host());
  if (page.value != std::exchange(current_page_, page.value)) have_ = 0;
  std::ranges::copy(
      frame.tail,
      page_.begin() + static_cast<std::ptrdiff_t>(fragment * wire::fragment_stride(nb_fragments)));
  have_ |= 1U << fragment;
  if (have_ != (1U << nb_fragments) - 1) return;
  have_ = 0;
  finish(page, page_, frame.page.crc32c.host());
}

void SocketReceiver::finish(Gfn page, std::span<const std::byte> bytes,
                            std::uint32_t crc) noexcept {
  if (crc32c(bytes) != crc)
    ++nb_bad_;
  else if (arena_->put(page, bytes))
    ++nb_pages_;
}

double SocketReceiver::seconds() const noexcept {
  return std::chrono::duration<double>(last_at_ - first_at_).count();
}

}  // namespace snowfabric::bench
