// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/packet_socket.hpp"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include <fmt/format.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace snowfabric::kernel {
namespace fs = std::filesystem;
namespace {

std::vector<int> sockets_of(int domain) {
  std::vector<int> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator{"/proc/self/fd", ignored}) {
    const std::string name = entry.path().filename();
    int fd = -1;
    int its_domain = 0;
    socklen_t length = sizeof its_domain;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &its_domain, &length) == 0 && its_domain == domain)
      found.push_back(fd);
  }
  return found;
}

packet_mreq membership(unsigned if_index, const MacAddr& group) {
  packet_mreq request{};
  request.mr_ifindex = static_cast<int>(if_index);
  request.mr_type = PACKET_MR_MULTICAST;
  request.mr_alen = sizeof group;
  std::memcpy(request.mr_address, group.bytes.data(), sizeof group);
  return request;
}

}  // namespace

std::optional<int> find_packet_socket(unsigned if_index) {
  for (const int fd : sockets_of(AF_PACKET)) {
    sockaddr_ll bound{};
    socklen_t length = sizeof bound;
    // the sockets API takes every address by its generic type
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) == 0 &&
        bound.sll_ifindex == static_cast<int>(if_index))
      return fd;
  }
  return std::nullopt;
}

std::optional<int> find_xdp_socket() {
  const std::vector<int> fds = sockets_of(AF_XDP);
  return fds.size() == 1 ? std::optional{fds.front()} : std::nullopt;
}

Result<void> join_groups(int packet_fd, unsigned if_index, std::span<const MacAddr> groups) {
  for (const MacAddr& group : groups) {
    const packet_mreq request = membership(if_index, group);
    if (setsockopt(packet_fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) != 0)
      return fail(errno, fmt::format("PACKET_ADD_MEMBERSHIP({}, interface {}): {}",
                                     to_string(group), if_index, std::strerror(errno)));
  }
  return {};
}

void leave_groups(int packet_fd, unsigned if_index, std::span<const MacAddr> groups) noexcept {
  for (const MacAddr& group : groups) {
    const packet_mreq request = membership(if_index, group);
    setsockopt(packet_fd, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &request, sizeof request);
  }
}

std::uint64_t take_packet_drops(int packet_fd) noexcept {
  tpacket_stats stats{};  // reading it resets it
  socklen_t length = sizeof stats;
  if (getsockopt(packet_fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length) != 0) return 0;
  return stats.tp_drops;
}

std::uint64_t xdp_drops(int xdp_fd) noexcept {
  xdp_statistics stats{};
  socklen_t length = sizeof stats;
  if (getsockopt(xdp_fd, SOL_XDP, XDP_STATISTICS, &stats, &length) != 0) return 0;
  return stats.rx_dropped + stats.rx_ring_full + stats.rx_fill_ring_empty_descs;
}

Result<unsigned> interface_mtu(const std::string& iface) {
  ifreq request{};
  if (iface.size() >= sizeof request.ifr_name)
    return fail(ENODEV, fmt::format("interface '{}': the name is too long", iface));
  iface.copy(request.ifr_name, iface.size());
  const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail(errno, fmt::format("socket: {}", std::strerror(errno)));
  const int status = ioctl(fd, SIOCGIFMTU, &request);
  const int error = errno;
  close(fd);
  if (status != 0)
    return fail(error, fmt::format("interface '{}': {} (`ip link` lists them)", iface,
                                   std::strerror(error)));
  return static_cast<unsigned>(request.ifr_mtu);
}

}  // namespace snowfabric::kernel
