// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "fabric/base/frame_number.hpp"

/// The userfaultfd ioctls memtap uses, each one system call.
namespace snowfabric::uffd {

/// What one filling ioctl did: a first part of the pages, or none for the reason in `errnum`.
struct Filled {
  std::uint64_t nb_pages;
  int errnum;
};

/// The kernel reports partial success as EAGAIN with the bytes done, and every other failure as the
/// negative errno of the first page; `done` stays 0 where an older kernel writes nothing.
inline Filled filled(int rc, std::int64_t done, std::uint64_t wanted_pages) noexcept {
  if (rc == 0) return {wanted_pages, 0};
  if (done > 0) return {static_cast<std::uint64_t>(done) / kPageSize, 0};
  return {0, errno};
}

/// Takes in events without waiting, though the guest may clear the O_NONBLOCK that we share with
/// it. Before Linux 6.10 that cannot be had: there a guest that does so stops us.
/// @return bytes, whole messages; or as read(2)
inline ssize_t read(int fd, std::span<uffd_msg> messages) noexcept {
  const iovec part{messages.data(), messages.size_bytes()};
  const ssize_t n = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
  if (n >= 0 || errno != EOPNOTSUPP) return n;
  return ::read(fd, messages.data(), messages.size_bytes());
}

/// Copies pages in, atomically each, and wakes who waits.
inline Filled copy(int fd, std::uint64_t address, const std::byte* bytes,
                   std::uint64_t nb_pages) noexcept {
  uffdio_copy arg{};
  arg.dst = address;
  arg.src = reinterpret_cast<std::uintptr_t>(bytes);
  arg.len = nb_pages * kPageSize;
  const int rc = ioctl(fd, UFFDIO_COPY, &arg);
  return filled(rc, arg.copy, nb_pages);
}

/// Maps zero pages and wakes who waits.
inline Filled zero(int fd, std::uint64_t address, std::uint64_t nb_pages) noexcept {
  uffdio_zeropage arg{};
  arg.range = {address, nb_pages * kPageSize};
  const int rc = ioctl(fd, UFFDIO_ZEROPAGE, &arg);
  return filled(rc, arg.zeropage, nb_pages);
}

/// Makes waiting threads try again; a page still missing faults anew.
inline void wake(int fd, std::uint64_t address, std::uint64_t nb_pages) noexcept {
  uffdio_range range{address, nb_pages * kPageSize};
  ioctl(fd, UFFDIO_WAKE, &range);
}

/// Makes it memory like any other again, and wakes who waits.
inline void unregister(int fd, std::uint64_t address, std::uint64_t nb_pages) noexcept {
  uffdio_range range{address, nb_pages * kPageSize};
  ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/// Linux 6.6; not in the headers of Debian 12. Source: include/uapi/linux/userfaultfd.h.
struct PoisonArg {
  uffdio_range range;
  std::uint64_t mode;
  std::int64_t updated;
};
inline constexpr unsigned long kPoison = _IOWR(UFFDIO, 0x08, PoisonArg);

/// Makes every later touch of the page SIGBUS. @return 0 or errno; ENOTTY or EINVAL: no such ioctl
inline int poison(int fd, std::uint64_t address) noexcept {
  PoisonArg arg{{address, kPageSize}, 0, 0};
  return ioctl(fd, kPoison, &arg) == 0 ? 0 : errno;
}

}  // namespace snowfabric::uffd
