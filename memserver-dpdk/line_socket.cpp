// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/line_socket.hpp"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/format.h>
#include <sys/socket.h>

#include "fabric/base/unix_socket.hpp"

namespace snowfabric {

Result<LineSocket> LineSocket::connect(const std::string& path, std::string_view peer,
                                       const Patience& patience) {
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  std::string whom = fmt::format("{} on {}", peer, path);
  // Not blocking: connect() would wait for a listener whose backlog is full.
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!socket) return fail(errno, "socket AF_UNIX");
  if (::connect(socket.get(), address->get(), UnixAddress::size()) != 0)
    return fail(errno, fmt::format("connect to {}", whom));
  return LineSocket{std::move(socket), std::move(whom), patience};
}

Result<void> LineSocket::say(std::string_view line) {
  const ssize_t sent = send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL);
  if (sent < 0) return fail(errno, fmt::format("send to {}", peer_));
  // A fresh socket has room for a line; what it does not take now it will not.
  if (static_cast<std::size_t>(sent) != line.size())
    return fail(EAGAIN, fmt::format("send to {}", peer_));
  return {};
}

Result<std::string_view> LineSocket::next() {
  for (;;) {
    const std::string_view rest = std::string_view{buffer_}.substr(begin_);
    const auto end = rest.find('\n');
    if (std::min(end, rest.size()) > kMaxLineBytes)
      return fail(EPROTO, fmt::format("{} sends a line without end", peer_));
    if (end != std::string_view::npos) {
      begin_ += end + 1;
      return rest.substr(0, end);
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    if (auto ok = receive(); !ok) return std::unexpected(ok.error());
  }
}

Result<void> LineSocket::receive() {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
  const auto wait = std::min(left, patience_.silence);
  pollfd polled{socket_.get(), POLLIN, 0};
  const int ready = wait.count() <= 0 ? 0 : poll(&polled, 1, static_cast<int>(wait.count()));
  if (ready < 0 && errno == EINTR) return {};
  if (ready < 0) return fail(errno, fmt::format("poll {}", peer_));
  if (ready == 0) return fail(ETIMEDOUT, fmt::format("{} does not answer in time", peer_));
  std::array<char, 65536> piece;
  const ssize_t n = recv(socket_.get(), piece.data(), piece.size(), 0);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return {};
  if (n < 0) return fail(errno, fmt::format("receive from {}", peer_));
  if (n == 0) return fail(ECONNRESET, fmt::format("{} hung up", peer_));
  buffer_.append(piece.data(), static_cast<std::size_t>(n));
  return {};
}

std::string printable(std::string_view text) {
  std::string out{text.substr(0, 200)};
  std::ranges::replace_if(out, [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

}  // namespace snowfabric
