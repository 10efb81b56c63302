// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

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
  /// What comes next, and the descriptor that came with it, if one did. Waits for it.
  std::pair<std::string, UniqueFd> hear() {
    std::array<char, 4096> text{};
    std::vector<UniqueFd> fds;
    const ssize_t n = receive_with_fds<1>(peer_.get(), text, fds).nb_bytes;
    std::string heard{text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
    return {std::move(heard), fds.empty() ? UniqueFd{} : std::move(fds.front())};
  }

 private:
  TempDir dir_;
  UniqueFd listener_, peer_;
  std::thread thread_;
};

}  // namespace snowfabric::testing
