// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/handshake.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "fabric/base/unix_socket.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kControlFds = 8;  // room to see that there are too many

Result<void> check_userfaultfd(int fd) {
  std::array<char, 64> target{};
  const std::string link = fmt::format("/proc/self/fd/{}", fd);
  if (readlink(link.c_str(), target.data(), target.size() - 1) < 0)
    return fail(errno, fmt::format("readlink {}", link));
  if (std::string_view{target.data()} != "anon_inode:[userfaultfd]")
    return fail(EBADF, fmt::format("handshake: the first descriptor is {}, not a userfaultfd",
                                   target.data()));
  return {};
}

/// The guest may have opened it blocking; poll() then reports an error and read() would hang us.
Result<void> set_nonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
    return fail(errno, "handshake: O_NONBLOCK on the guest's descriptor");
  return {};
}

Result<Peer> peer_of(UniqueFd socket) {
  ucred credentials{};
  socklen_t len = sizeof credentials;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &len) != 0)
    return fail(errno, "getsockopt SO_PEERCRED on a guest's socket");
  if (credentials.pid <= 0)
    return fail(EINVAL,
                "handshake: the peer's process cannot be told: a socket that is not a "
                "connected unix socket, or a peer in another PID namespace");
  // glibc 2.36 declares pidfd_open() without C linkage, so C++ cannot call it.
  UniqueFd pidfd{static_cast<int>(syscall(SYS_pidfd_open, credentials.pid, 0))};
  if (!pidfd) return fail(errno, fmt::format("pidfd_open of guest process {}", credentials.pid));
  return Peer{std::move(socket), std::move(pidfd), credentials.pid, credentials.uid};
}

}  // namespace

Result<PendingHandshake> PendingHandshake::begin(UniqueFd socket) {
  auto peer = peer_of(std::move(socket));
  if (!peer) return std::unexpected(peer.error());
  PendingHandshake pending;
  pending.peer_ = std::move(*peer);
  return pending;
}

Result<bool> PendingHandshake::receive() {
  constexpr int kMaxPieces = 8;  // a slow sender gets its next turn with the next poll
  for (int i = 0; i < kMaxPieces; ++i) {
    std::array<char, 4096> piece;
    const auto [n, fds_lost] =
        receive_with_fds<kControlFds>(peer_.socket.get(), piece, fds_, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n < 0) return fail(errno, fmt::format("handshake: recvmsg from process {}", peer_.pid));
    if (fds_.size() > kMaxHandshakeFds || fds_lost)
      return fail(EPROTO, fmt::format("handshake: process {} sent more than {} descriptors",
                                      peer_.pid, kMaxHandshakeFds));
    if (n == 0)
      return fail(ECONNRESET, fmt::format("handshake: process {} closed after {} bytes, before the "
                                          "message was whole",
                                          peer_.pid, message_.size()));
    const auto whole = take({piece.data(), static_cast<std::size_t>(n)});
    if (!whole || *whole) return whole;
  }
  return false;
}

Result<bool> PendingHandshake::take(std::string_view piece) {
  if (message_.size() + piece.size() > kMaxHandshakeBytes)
    return fail(E2BIG, fmt::format("handshake: process {} sent more than {} bytes", peer_.pid,
                                   kMaxHandshakeBytes));
  message_ += piece;
  const auto verdict = scanner_.feed(piece);
  if (verdict == ArrayScanner::Verdict::kGarbage)
    return fail(EPROTO, fmt::format("handshake: process {} sent something other than one JSON "
                                    "array; is it a memtap guest?",
                                    peer_.pid));
  return verdict == ArrayScanner::Verdict::kComplete;
}

Result<Attachment> PendingHandshake::finish(std::uint64_t image_bytes) && {
  auto regions = parse_handshake(message_, image_bytes);
  if (!regions) return std::unexpected(regions.error());
  if (fds_.empty())
    return fail(EPROTO, fmt::format("handshake: process {} sent no descriptor", peer_.pid));
  if (auto ok = check_userfaultfd(fds_[0].get()); !ok) return std::unexpected(ok.error());
  if (auto ok = set_nonblocking(fds_[0].get()); !ok) return std::unexpected(ok.error());
  Attachment guest;
  guest.regions = std::move(*regions);
  guest.uffd = std::move(fds_[0]);
  if (fds_.size() > 1) guest.extra = std::move(fds_[1]);
  guest.peer = std::move(peer_);
  guest.mapped = mapped_file_of(message_);
  return guest;
}

Result<QemuAttachment> PendingHandshake::finish_qemu() && {
  auto request = qemu_request_of(message_);
  if (!request) return std::unexpected(request.error());
  if (fds_.size() != 1)
    return fail(EPROTO, fmt::format("handshake: process {} sent {} descriptors, not the one "
                                    "migration channel",
                                    peer_.pid, fds_.size()));
  if (auto ok = set_nonblocking(fds_[0].get()); !ok) return std::unexpected(ok.error());
  auto qemu = peer_of(std::move(fds_[0]));
  if (!qemu) return std::unexpected(qemu.error());
  return QemuAttachment{std::move(peer_.socket), std::move(*qemu), std::move(request->image),
                        request->recover};
}

Result<XenAttachment> PendingHandshake::finish_xen() && {
  auto request = xen_domain_of(message_);
  if (!request) return std::unexpected(request.error());
  if (!fds_.empty())
    return fail(EPROTO, fmt::format("handshake: process {} sent {} descriptors with a domain",
                                    peer_.pid, fds_.size()));
  return XenAttachment{std::move(peer_), xen::DomId{request->domain}, std::move(request->image),
                       request->recover, std::move(request->asked)};
}

Result<CompletionRequest> PendingHandshake::finish_completion() && {
  const auto guest = guest_to_complete(message_);
  if (!guest) return std::unexpected(guest.error());
  return CompletionRequest{std::move(peer_.socket), *guest};
}

}  // namespace snowfabric
