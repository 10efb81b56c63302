// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// Where a unix socket lies, as bind(2) and connect(2) take it.
class UnixAddress {
 public:
  /// @return ENAMETOOLONG: the path is empty or too long
  [[nodiscard]] static Result<UnixAddress> of(const std::string& path) {
    UnixAddress address;
    constexpr std::size_t kMaxBytes = sizeof address.value_.sun_path - 1;
    if (path.empty() || path.size() > kMaxBytes)
      return fail(ENAMETOOLONG,
                  fmt::format("socket path \"{}\" must have 1 to {} bytes", path, kMaxBytes));
    std::memcpy(address.value_.sun_path, path.data(), path.size());
    return address;
  }

  [[nodiscard]] const sockaddr* get() const noexcept {
    return reinterpret_cast<const sockaddr*>(&value_);
  }
  [[nodiscard]] static constexpr socklen_t size() noexcept { return sizeof(sockaddr_un); }

 private:
  UnixAddress() noexcept { value_.sun_family = AF_UNIX; }
  sockaddr_un value_{};
};

/// sendmsg(2) of text with descriptors, of which the receiver gets copies. Raises no SIGPIPE.
/// @pre at most kMaxSentFds
inline constexpr std::size_t kMaxSentFds = 16;
inline ssize_t send_with_fds(int socket, std::string_view text, std::span<const int> fds) noexcept {
  iovec iov{const_cast<char*>(text.data()), text.size()};  // sendmsg only reads
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxSentFds)> control{};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL);
}

/// What a recvmsg(2) did.
struct Received {
  ssize_t nb_bytes = 0;   ///< as recvmsg
  bool fds_lost = false;  ///< more descriptors came than there was room for
};

/// recvmsg(2); the descriptors that came along, closed on exec, are added to `fds`.
/// @tparam kMaxFds  room for so many in one call
template <std::size_t kMaxFds>
Received receive_with_fds(int socket, std::span<char> out, std::vector<UniqueFd>& fds,
                          int flags = 0) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFds)> control;
  iovec iov{out.data(), out.size()};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  fds.reserve(fds.size() + kMaxFds);  // nothing may fail before each has an owner
  const ssize_t n = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (n < 0) return {.nb_bytes = n};
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t nb_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < nb_fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return {.nb_bytes = n, .fds_lost = (message.msg_flags & MSG_CTRUNC) != 0};
}

}  // namespace snowfabric
