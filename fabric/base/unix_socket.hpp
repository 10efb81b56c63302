// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cerrno>
#include <cstring>
#include <string>
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

/// Takes over the descriptors that came with a message. Nothing may fail before each has an owner.
inline void adopt_fds(msghdr& message, std::vector<UniqueFd>& fds) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t nb_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < nb_fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      UniqueFd owner{fd};
      fds.push_back(std::move(owner));
    }
  }
}

}  // namespace snowfabric
