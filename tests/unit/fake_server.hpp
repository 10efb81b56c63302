// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <functional>
#include <thread>
#include <utility>

#include "tests/unit/guest_peer.hpp"

namespace snowfabric::testing {

/// Somebody behind a unix socket, who says what the test scripts. One client.
class FakeServer {
 public:
  using Script = std::function<void(FakeServer&)>;
  explicit FakeServer(const Script& script) {
    listener_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    thread_ = std::thread{[this, script] {
      peer_ = UniqueFd{accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      script(*this);
      const UniqueFd closed{std::move(peer_)};
    }};
  }
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;
  ~FakeServer() { thread_.join(); }

  [[nodiscard]] std::string path() const { return dir_ / "socket"; }
  /// @return false: the client has gone
  bool say(std::string_view text) {
    return send(peer_.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }
  /// What comes next, and the descriptor that came with it or -1. Waits for it.
  std::pair<std::string, int> hear() {
    std::array<char, 4096> text{};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec iov{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = recvmsg(peer_.get(), &message, MSG_CMSG_CLOEXEC);
    int fd = -1;
    if (const cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr)
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return {{text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))}, fd};
  }

 private:
  TempDir dir_;
  UniqueFd listener_, peer_;
  std::thread thread_;
};

}  // namespace snowfabric::testing
