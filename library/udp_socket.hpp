// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cerrno>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <net/if.h>
#include <sys/socket.h>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

/// UDP sockets as the carrier by kernel sockets has them. Control path, any thread.
namespace snowfabric {

/// @return errno of setsockopt(2)
template <class Value>
Result<void> set_option(int fd, int level, int name, const Value& value, const char* what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) == 0) return {};
  return fail(errno, fmt::format("setsockopt {}", what));
}

/// Of IPv4, with more buffer than an ordinary user gets, where that is allowed.
/// @param flags  of socket(2), beside SOCK_CLOEXEC
/// @return errno of socket(2)
inline Result<UniqueFd> open_udp_socket(int flags) {
  constexpr int kBufferBytes = 8 << 20;  // a receiver that waits for a CPU: 60 ms at 1 Gbit/s
  UniqueFd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | flags, 0)};
  if (!fd) return fail(errno, "socket UDP");
  for (const auto& [forced, asked] :
       {std::pair{SO_RCVBUFFORCE, SO_RCVBUF}, {SO_SNDBUFFORCE, SO_SNDBUF}})
    if (::setsockopt(fd.get(), SOL_SOCKET, forced, &kBufferBytes, sizeof kBufferBytes) != 0)
      ::setsockopt(fd.get(), SOL_SOCKET, asked, &kBufferBytes, sizeof kBufferBytes);
  return fd;
}

/// @return ENODEV: there is none of this name
inline Result<int> interface_index(const std::string& interface) {
  const unsigned index = ::if_nametoindex(interface.c_str());
  if (index == 0) return fail(ENODEV, fmt::format("no network interface {}", interface));
  return static_cast<int>(index);
}

}  // namespace snowfabric
