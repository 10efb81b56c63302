// SPDX-License-Identifier: BSD-3-Clause
#include "library/udp_carrier.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

namespace snowfabric {
namespace {

constexpr int kSocketBufferBytes = 8 << 20;  // a receiver that waits for a CPU: 60 ms at 1 Gbit/s
constexpr std::uint16_t kDefaultMtu = 1500;
constexpr std::size_t kMaxMtu = 65535;

template <class Value>
Result<void> set(int fd, int level, int name, const Value& value, const char* what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) == 0) return {};
  return fail(errno, fmt::format("setsockopt {}", what));
}

/// More than an ordinary user gets, where that is allowed.
void enlarge_buffers(int fd) noexcept {
  for (const auto& [forced, asked] :
       {std::pair{SO_RCVBUFFORCE, SO_RCVBUF}, {SO_SNDBUFFORCE, SO_SNDBUF}})
    if (::setsockopt(fd, SOL_SOCKET, forced, &kSocketBufferBytes, sizeof kSocketBufferBytes) != 0)
      ::setsockopt(fd, SOL_SOCKET, asked, &kSocketBufferBytes, sizeof kSocketBufferBytes);
}

Result<UniqueFd> open_socket() {
  UniqueFd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!fd) return fail(errno, "socket UDP");
  enlarge_buffers(fd.get());
  return fd;
}

Result<void> bind_to(int fd, in_addr address, std::uint16_t port) {
  const sockaddr_in to{
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address, .sin_zero = {}};
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return {};
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &address, text.data(), text.size());
  return fail(errno, fmt::format("bind UDP {}:{}", text.data(), port));
}

Result<int> index_of(const std::string& interface) {
  if (interface.empty()) return 0;
  const unsigned index = ::if_nametoindex(interface.c_str());
  if (index == 0) return fail(ENODEV, fmt::format("no network interface {}", interface));
  return static_cast<int>(index);
}

Result<std::size_t> mtu_of(const UdpOptions& options, int fd) {
  if (options.mtu_bytes != 0) return options.mtu_bytes;
  if (options.interface.empty()) return kDefaultMtu;
  ifreq request{};
  options.interface.copy(request.ifr_name, sizeof request.ifr_name - 1);
  if (::ioctl(fd, SIOCGIFMTU, &request) != 0)
    return fail(errno, fmt::format("MTU of network interface {}", options.interface));
  return std::min(static_cast<std::size_t>(request.ifr_mtu), kMaxMtu);
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
  if (const auto ok = carrier->open_own(options, *ifindex); !ok) return std::unexpected(ok.error());
  const auto offset = static_cast<std::uint16_t>(side == Side::kServer ? 0 : 1);
  if (const auto ok =
          carrier->open_group(static_cast<std::uint16_t>(options.port + offset), *ifindex);
      !ok)
    return std::unexpected(ok.error());
  if (const auto ok = carrier->wait_for_both(); !ok) return std::unexpected(ok.error());
  return carrier;
}

/// What we send from, and what is sent to us alone.
Result<void> UdpCarrier::open_own(const UdpOptions& options, int ifindex) {
  auto fd = open_socket();
  if (!fd) return std::unexpected(fd.error());
  own_ = std::move(*fd);
  const auto mtu = mtu_of(options, own_.get());
  if (!mtu) return std::unexpected(mtu.error());
  if (*mtu < kIpUdpBytes || wire::fragments_for_mtu(*mtu - kIpUdpBytes) == 0)
    return fail(EINVAL, fmt::format("an MTU of {} is too small for a page in {} frames", *mtu,
                                    wire::kMaxFragments));
  mtu_bytes_ = static_cast<std::uint16_t>(*mtu - kIpUdpBytes);
  const ip_mreqn through{.imr_multiaddr = {}, .imr_address = {}, .imr_ifindex = ifindex};
  if (ifindex != 0)
    if (auto ok = set(own_.get(), IPPROTO_IP, IP_MULTICAST_IF, through, "IP_MULTICAST_IF"); !ok)
      return ok;
  if (auto ok = set(own_.get(), IPPROTO_IP, IP_MULTICAST_TTL, int{options.ttl}, "IP_MULTICAST_TTL");
      !ok)
    return ok;
  if (auto ok = bind_to(own_.get(), {.s_addr = INADDR_ANY}, 0); !ok) return ok;
  sockaddr_in bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(own_.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return fail(errno, "getsockname UDP");
  address_ = member_of(bound);
  return {};
}

Result<void> UdpCarrier::open_group(std::uint16_t port, int ifindex) {
  auto fd = open_socket();
  if (!fd) return std::unexpected(fd.error());
  group_socket_ = std::move(*fd);
  const int socket = group_socket_.get();
  if (auto ok = set(socket, SOL_SOCKET, SO_REUSEADDR, int{1}, "SO_REUSEADDR"); !ok) return ok;
  if (auto ok = set(socket, IPPROTO_IP, IP_MULTICAST_ALL, int{0}, "IP_MULTICAST_ALL"); !ok)
    return ok;
  if (auto ok = bind_to(socket, group_, port); !ok) return ok;
  const ip_mreqn join{.imr_multiaddr = group_, .imr_address = {}, .imr_ifindex = ifindex};
  return set(socket, IPPROTO_IP, IP_ADD_MEMBERSHIP, join,
             "IP_ADD_MEMBERSHIP (is there a route for multicast?)");
}

Result<void> UdpCarrier::wait_for_both() {
  epoll_ = UniqueFd{::epoll_create1(EPOLL_CLOEXEC)};
  if (!epoll_) return fail(errno, "epoll_create1");
  for (const int fd : {own_.get(), group_socket_.get()}) {
    epoll_event readable{.events = EPOLLIN, .data = {.fd = fd}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &readable) != 0)
      return fail(errno, "epoll_ctl");
  }
  return {};
}

// --- receive ---------------------------------------------------------------------------------

std::span<const Carrier::Received> UdpCarrier::receive() noexcept {
  // Answers to us alone are few; both are looked at in each turn.
  std::size_t nb_received = receive_from(own_.get(), 0);
  nb_received = receive_from(group_socket_.get(), nb_received);
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
    const MacAddr src = member_of(from_[nb_received]);
    // One that claims to be all of them is nobody: a frame of nothing.
    const bool is_member = src != image_group_ && src != kBroadcast;
    const std::size_t nb_bytes = got_[nb_received].msg_len;
    received_[nb_received] = {
        .src = src,
        .payload = std::span{buffers_[nb_received]}.first(is_member ? nb_bytes : 0),
        .wire_bytes = nb_bytes + kIpUdpBytes + sizeof(wire::EthHdr)};
  }
  return nb_received;
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
    const int nb_sent = ::sendmmsg(own_.get(), to_send_.data() + first_,
                                   static_cast<unsigned>(end_ - first_), MSG_DONTWAIT);
    if (nb_sent <= 0) {
      if (may_pass(errno)) break;
      nb_failed_.add(1);  // this one alone: the next may be for another
      ++first_;
      continue;
    }
    for (int i = 0; i < nb_sent; ++i)
      tx_bytes_.add(to_send_[first_++].msg_len + kIpUdpBytes + sizeof(wire::EthHdr));
  }
  const std::size_t nb_done = first_ - before;
  if (first_ == end_) first_ = end_ = 0;
  return nb_done;
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
