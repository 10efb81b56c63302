// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/stream_channel.hpp"

#include <algorithm>
#include <array>
#include <cerrno>

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>

namespace snowfabric {
namespace {

constexpr std::chrono::milliseconds kLookAtStop = std::chrono::seconds{1};

}  // namespace

StreamChannel::StreamChannel(int socket, std::chrono::milliseconds patience,
                             const std::atomic<bool>& stop) noexcept
    : socket_{socket}, patience_{patience}, stop_{&stop} {
  const auto slice = std::min(patience, kLookAtStop).count();
  const timeval limit{.tv_sec = slice / 1000, .tv_usec = slice % 1000 * 1000};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

Result<std::size_t> StreamChannel::receive(std::span<std::byte> out) const {
  const auto deadline = std::chrono::steady_clock::now() + patience_;
  for (;;) {
    const ssize_t n = recv(socket_, out.data(), out.size(), 0);
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return fail(errno, "receive the parent's memory");
    if (*stop_) return fail(ECANCELED, "stopped while the parent's QEMU sent nothing");
    if (std::chrono::steady_clock::now() >= deadline)
      return fail(ETIMEDOUT, fmt::format("the parent's QEMU has sent nothing of its state for {} s",
                                         std::chrono::duration<double>{patience_}.count()));
  }
}

Result<void> StreamChannel::hear_out() const {
  std::array<std::byte, 65536> rest;
  for (;;) {
    const auto nb_bytes = receive(rest);
    if (!nb_bytes) return std::unexpected(nb_bytes.error());
    if (*nb_bytes == 0) return {};
  }
}

}  // namespace snowfabric
