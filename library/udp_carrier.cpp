// SPDX-License-Identifier: BSD-3-Clause
#include "library/udp_carrier.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "library/clock.hpp"
#include "library/udp_socket.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kMaxPayloadBytes = wire::kMaxFrameBytes - sizeof(wire::EthHdr);
constexpr Nanos kPatience{std::chrono::milliseconds{10}},
    kForgotten{std::chrono::milliseconds{100}};
constexpr Nanos kBetweenLooks{std::chrono::milliseconds{1}};  // whether an address is local
constexpr std::uint16_t kDefaultMtu = 1500;
constexpr std::size_t kMaxMtu = 65535;

Result<void> bind_to(int fd, in_addr address, std::uint16_t port) {
  const sockaddr_in to{
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address, .sin_zero = {}};
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return {};
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &address, text.data(), text.size());
  return fail(errno, fmt::format("bind UDP {}:{}", text.data(), port));
}

Result<int> index_of(const std::string& interface) {
  return interface.empty() ? Result<int>{0} : interface_index(interface);
}

/// Asks the kernel for what it knows of an interface.
Result<ifreq> ask_of(const std::string& interface, int fd, unsigned long what, const char* name) {
  ifreq request{};
  interface.copy(request.ifr_name, sizeof request.ifr_name - 1);
  if (::ioctl(fd, what, &request) == 0) return request;
  return fail(errno, fmt::format("{} of network interface {}", name, interface));
}

Result<std::size_t> mtu_of(const UdpOptions& options, int fd) {
  const std::size_t wanted = options.mtu_bytes;
  if (options.interface.empty()) return wanted != 0 ? wanted : kDefaultMtu;
  const auto answer = ask_of(options.interface, fd, SIOCGIFMTU, "MTU");
  if (!answer) return std::unexpected(answer.error());
  const auto most = std::min(static_cast<std::size_t>(answer->ifr_mtu), kMaxMtu);
  if (wanted > most)
    return fail(EMSGSIZE, fmt::format("an MTU of {} on network interface {}, whose is {}", wanted,
                                      options.interface, most));
  return wanted != 0 ? wanted : most;
}

/// Of what we send, and what is sent to us alone: nobody reaches us by another network's address.
Result<in_addr> own_address(const std::string& interface, int fd) {
  if (interface.empty()) return in_addr{.s_addr = INADDR_ANY};
  const auto answer = ask_of(interface, fd, SIOCGIFADDR, "IPv4 address");
  if (!answer) return std::unexpected(answer.error());
  sockaddr_in address{};
  std::memcpy(&address, &answer->ifr_addr, sizeof address);
  return address.sin_addr;
}

/// How frames are to leave by this socket.
Result<void> send_by(int fd, int ifindex, std::uint8_t ttl) {
  const ip_mreqn through{.imr_multiaddr = {}, .imr_address = {}, .imr_ifindex = ifindex};
  if (ifindex != 0)
    if (auto ok = set_option(fd, IPPROTO_IP, IP_MULTICAST_IF, through, "IP_MULTICAST_IF"); !ok)
      return ok;
  if (auto ok = set_option(fd, IPPROTO_IP, IP_MULTICAST_TTL, int{ttl}, "IP_MULTICAST_TTL"); !ok)
    return ok;
  if (auto ok = set_option(fd, IPPROTO_IP, IP_TTL, int{ttl}, "IP_TTL"); !ok) return ok;
  return set_option(fd, IPPROTO_IP, IP_MTU_DISCOVER, int{IP_PMTUDISC_PROBE}, "IP_MTU_DISCOVER");
}

Result<in_addr> group_of(const UdpOptions& options, std::uint64_t image_id) {
  if (options.group.empty()) return udp_group(image_id);
  in_addr group{};
  if (::inet_pton(AF_INET, options.group.c_str(), &group) != 1 ||
      !IN_MULTICAST(ntohl(group.s_addr)))
    return fail(EINVAL, fmt::format("group {} is no IPv4 multicast address", options.group));
  return group;
}

MacAddr member_of(const sockaddr_in& from) noexcept {
  MacAddr member;
  std::memcpy(member.bytes.data(), &from.sin_port, sizeof from.sin_port);
  std::memcpy(member.bytes.data() + sizeof from.sin_port, &from.sin_addr, sizeof from.sin_addr);
  return member;
}

/// Whether an address is this host's: bind(2) takes no other. When in doubt, it is.
bool is_local(const in_addr& address) noexcept {
  const UniqueFd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  const sockaddr_in to{.sin_family = AF_INET, .sin_port = 0, .sin_addr = address, .sin_zero = {}};
  return !fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 ||
         errno != EADDRNOTAVAIL;
}

bool may_pass(int error) noexcept { return error == EAGAIN || error == ENOBUFS || error == EINTR; }

}  // namespace

in_addr udp_group(std::uint64_t image_id) noexcept {
  const MacAddr mac = group_address(image_id);
  const std::uint32_t bits = (mac.bytes[1] & 3U) << 16U | mac.bytes[2] * 256U | mac.bytes[3];
  return {.s_addr = htonl(0xEFC00000U | bits)};  // 239.192.0.0/14
}

Result<std::unique_ptr<Carrier>> UdpCarrier::open(const UdpOptions& options, Side side,
                                                  std::uint64_t image_id) {
  if (options.port == 0 || options.port == 65535)
    return fail(EINVAL, fmt::format("UDP port {}: it and the next are used", options.port));
  const auto group = group_of(options, image_id);
  if (!group) return std::unexpected(group.error());
  const auto ifindex = index_of(options.interface);
  if (!ifindex) return std::unexpected(ifindex.error());
  std::unique_ptr<UdpCarrier> carrier{new UdpCarrier};
  carrier->group_ = *group;
  carrier->image_group_ = group_address(image_id);
  carrier->port_ = options.port;
  carrier->is_server_ = side == Side::kServer;
  if (const auto ok = carrier->open_own(options, *ifindex); !ok) return std::unexpected(ok.error());
  const auto offset = static_cast<std::uint16_t>(side == Side::kServer ? 0 : 1);
  if (const auto ok =
          carrier->open_group(static_cast<std::uint16_t>(options.port + offset), *ifindex);
      !ok)
    return std::unexpected(ok.error());
  if (const auto ok = send_by(carrier->group_socket_.get(), *ifindex, options.ttl); !ok)
    return std::unexpected(ok.error());
  if (carrier->is_server_)
    if (const auto ok = carrier->loop(false); !ok) return std::unexpected(ok.error());
  if (const auto ok = carrier->wait_for_both(); !ok) return std::unexpected(ok.error());
  return carrier;
}

/// What we send from, and what is sent to us alone.
Result<void> UdpCarrier::open_own(const UdpOptions& options, int ifindex) {
  auto fd = open_udp_socket(SOCK_NONBLOCK);
  if (!fd) return std::unexpected(fd.error());
  own_ = std::move(*fd);
  const auto mtu = mtu_of(options, own_.get());
  if (!mtu) return std::unexpected(mtu.error());
  if (*mtu < kIpUdpBytes || wire::fragments_for_mtu(*mtu - kIpUdpBytes) == 0)
    return fail(EINVAL, fmt::format("an MTU of {} is too small for a page in {} frames", *mtu,
                                    wire::kMaxFragments));
  mtu_bytes_ = static_cast<std::uint16_t>(*mtu - kIpUdpBytes);
  if (auto ok = send_by(own_.get(), ifindex, options.ttl); !ok) return ok;
  const auto address = own_address(options.interface, own_.get());
  if (!address) return std::unexpected(address.error());
  if (auto ok = bind_to(own_.get(), *address, 0); !ok) return ok;
  sockaddr_in bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(own_.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return fail(errno, "getsockname UDP");
  address_ = member_of(bound);
  return {};
}

Result<void> UdpCarrier::open_group(std::uint16_t port, int ifindex) {
  auto fd = open_udp_socket(SOCK_NONBLOCK);
  if (!fd) return std::unexpected(fd.error());
  group_socket_ = std::move(*fd);
  const int socket = group_socket_.get();
  if (auto ok = set_option(socket, SOL_SOCKET, SO_REUSEADDR, int{1}, "SO_REUSEADDR"); !ok)
    return ok;
  if (auto ok = set_option(socket, IPPROTO_IP, IP_MULTICAST_ALL, int{0}, "IP_MULTICAST_ALL"); !ok)
    return ok;
  if (auto ok = bind_to(socket, group_, port); !ok) return ok;
  const ip_mreqn join{.imr_multiaddr = group_, .imr_address = {}, .imr_ifindex = ifindex};
  return set_option(socket, IPPROTO_IP, IP_ADD_MEMBERSHIP, join,
                    "IP_ADD_MEMBERSHIP (is there a route for multicast?)");
}

/// Whether members of our own host get what we send to the group.
Result<void> UdpCarrier::loop(bool on) noexcept {
  auto ok =
      set_option(group_socket_.get(), IPPROTO_IP, IP_MULTICAST_LOOP, int{on}, "IP_MULTICAST_LOOP");
  if (ok) loops_ = on;
  return ok;
}

Result<void> UdpCarrier::wait_for_both() {
  epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  if (!epoll_) return fail(errno, "epoll_create1");
  for (const int fd : {own_.get(), group_socket_.get()}) {
    epoll_event readable{.events = EPOLLIN, .data = {.fd = fd}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &readable) != 0)
      return fail(errno, "epoll_ctl");
  }
  sockets_ = {own_.get(), group_socket_.get()};
  return {};
}

// --- receive ---------------------------------------------------------------------------------

std::span<const Carrier::Received> UdpCarrier::receive() noexcept {
  // Who floods the one that is first leaves no room for the other, which is the first then.
  std::swap(sockets_[0], sockets_[1]);
  std::size_t nb_received = receive_from(sockets_[0], 0);
  nb_received = receive_from(sockets_[1], nb_received);
  return std::span{received_}.first(nb_received);
}

/// @param nb_received  so far @return with those that this socket has
std::size_t UdpCarrier::receive_from(int fd, std::size_t nb_received) noexcept {
  for (std::size_t i = nb_received; i < kBurst; ++i) {
    into_[i] = {.iov_base = buffers_[i].data(), .iov_len = buffers_[i].size()};
    got_[i].msg_hdr = {.msg_name = &from_[i],
                       .msg_namelen = sizeof from_[i],
                       .msg_iov = &into_[i],
                       .msg_iovlen = 1,
                       .msg_control = nullptr,
                       .msg_controllen = 0,
                       .msg_flags = 0};
  }
  const int nb_got = ::recvmmsg(fd, got_.data() + nb_received,
                                static_cast<unsigned>(kBurst - nb_received), MSG_DONTWAIT, nullptr);
  for (int left = nb_got; left > 0; --left, ++nb_received) {
    if (!loops_ && fd == group_socket_.get()) see_whether_local(from_[nb_received].sin_addr);
    const MacAddr src = member_of(from_[nb_received]);
    const std::size_t nb_bytes = got_[nb_received].msg_len;
    // Who claims to be all of them is nobody, and what is too long none of ours: a frame of
    // nothing.
    const bool is_ours = src != image_group_ && src != kBroadcast && nb_bytes <= kMaxPayloadBytes;
    received_[nb_received] = {
        .src = src,
        .payload = std::span{buffers_[nb_received]}.first(is_ours ? nb_bytes : 0),
        .wire_bytes = nb_bytes + kIpUdpBytes + sizeof(wire::EthHdr)};
  }
  return nb_received;
}

/// A copy of each frame for our own host costs a server a tenth of its rate. So it begins without,
/// until a client of the same host has said HELLO, which it does before it asks for anything.
void UdpCarrier::see_whether_local(const in_addr& from) noexcept {
  if (from.s_addr == remote_.s_addr) return;
  const Nanos now = monotonic_now();
  if (now - looked_at_ < kBetweenLooks) return;  // HELLO comes again
  looked_at_ = now;
  if (!is_local(from) || !loop(true)) remote_ = from;
}

// --- send ------------------------------------------------------------------------------------

std::span<std::byte> UdpCarrier::room() noexcept {
  if (end_ == kQueue) return {};
  return frames_[end_].bytes;
}

void UdpCarrier::push(std::size_t nb_bytes,
                      std::span<const std::span<const std::byte>> tail) noexcept {
  Frame& frame = frames_[end_];
  wire::EthHdr eth;
  std::memcpy(&eth, frame.bytes.data(), sizeof eth);
  frame.to = to_socket_address(eth.dst);
  frame.socket = is_server_ && eth.dst == image_group_ ? group_socket_.get() : own_.get();
  frame.parts[0] = {.iov_base = frame.bytes.data() + sizeof eth, .iov_len = nb_bytes - sizeof eth};
  std::size_t nb_parts = 1;
  for (const auto& part : tail)  // sendmmsg takes pointers to non-const and does not write there
    frame.parts[nb_parts++] = {.iov_base = const_cast<std::byte*>(part.data()),
                               .iov_len = part.size()};
  to_send_[end_].msg_hdr = {.msg_name = &frame.to,
                            .msg_namelen = sizeof frame.to,
                            .msg_iov = frame.parts.data(),
                            .msg_iovlen = nb_parts,
                            .msg_control = nullptr,
                            .msg_controllen = 0,
                            .msg_flags = 0};
  ++end_;
}

std::size_t UdpCarrier::flush() noexcept {
  const std::size_t before = first_;
  while (first_ != end_) {
    const int socket = frames_[first_].socket;
    const int nb_sent = ::sendmmsg(socket, to_send_.data() + first_,
                                   static_cast<unsigned>(nb_alike()), MSG_DONTWAIT);
    if (nb_sent <= 0) {
      if (may_pass(errno) && (socket != own_.get() || !is_stuck())) break;
      nb_failed_.add(1);  // this one alone: the next may be for another
      ++first_;
      continue;
    }
    if (socket == own_.get()) stuck_since_ = kNever;
    for (int i = 0; i < nb_sent; ++i)
      tx_bytes_.add(to_send_[first_++].msg_len + kIpUdpBytes + sizeof(wire::EthHdr));
  }
  const std::size_t nb_done = first_ - before;
  if (first_ == end_) first_ = end_ = 0;
  return nb_done;
}

/// Whether our own socket has taken nothing for a while. Then it may be full of what waits for
/// members that are gone, and the pages of all behind that: they ask again for what is left out.
bool UdpCarrier::is_stuck() noexcept {
  const Nanos now = monotonic_now();
  if (stuck_since_ == kNever || now - refused_at_ > kForgotten) stuck_since_ = now;
  refused_at_ = now;
  return now - stuck_since_ > kPatience;
}

/// Of those queued, from the first on: how many go by one socket.
std::size_t UdpCarrier::nb_alike() const noexcept {
  std::size_t end = first_ + 1;
  while (end != end_ && frames_[end].socket == frames_[first_].socket) ++end;
  return end - first_;
}

sockaddr_in UdpCarrier::to_socket_address(const MacAddr& member) const noexcept {
  sockaddr_in to{
      .sin_family = AF_INET, .sin_port = htons(port_), .sin_addr = group_, .sin_zero = {}};
  if (member == image_group_) to.sin_port = htons(static_cast<std::uint16_t>(port_ + 1));
  if (member == image_group_ || member == kBroadcast) return to;
  std::memcpy(&to.sin_port, member.bytes.data(), sizeof to.sin_port);
  std::memcpy(&to.sin_addr, member.bytes.data() + sizeof to.sin_port, sizeof to.sin_addr);
  return to;
}

}  // namespace snowfabric
