// SPDX-License-Identifier: BSD-3-Clause
#include "tools/sf_guest_link.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <nlohmann/json.hpp>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "fabric/base/unix_socket.hpp"

namespace snowfabric {
namespace {

Result<UniqueFd> make_userfaultfd() {
  UniqueFd fd{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
  if (!fd)
    return fail(errno, "userfaultfd: run as root, or set sysctl vm.unprivileged_userfaultfd=1");
  uffdio_api api{UFFD_API, UFFD_FEATURE_EVENT_REMOVE, 0};
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0) return fail(errno, "UFFDIO_API with EVENT_REMOVE");
  return fd;
}

std::string message_of(const GuestMemory& memory, HandshakeForm form) {
  nlohmann::json region{{"base_host_virt_addr", reinterpret_cast<std::uintptr_t>(memory.page(0))},
                        {"size", memory.nb_pages() * kPageSize},
                        {"offset", 0U}};
  if (!form.old) {
    region["page_size"] = kPageSize;
    region["page_size_kib"] = kPageSize;
  }
  return nlohmann::json::array({region}).dump();
}

Result<void> send_message(int socket, const std::string& bytes, std::span<const int> fds) {
  // A message of this size fits the buffer of a fresh socket: it goes whole or not at all.
  if (send_with_fds(socket, bytes, fds) != static_cast<ssize_t>(bytes.size()))
    return fail(errno, "sendmsg of the handshake");
  return {};
}

Result<UniqueFd> connect_within(const std::string& path, std::chrono::milliseconds timeout) {
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    UniqueFd fd{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (!fd) return fail(errno, "socket AF_UNIX");
    if (connect(fd.get(), address->get(), UnixAddress::size()) == 0) return fd;
    if (errno != ENOENT && errno != ECONNREFUSED)
      return fail(errno, fmt::format("connect {}", path));
    if (std::chrono::steady_clock::now() >= deadline)
      return fail(ETIMEDOUT, fmt::format("no memtap listens on {}; start memtap-dpdk first", path));
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
  }
}

}  // namespace

Result<ImageFile> ImageFile::map(const std::string& path) {
  const UniqueFd fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat st{};
  if (!fd || fstat(fd.get(), &st) != 0) return fail(errno, fmt::format("open {}", path));
  if (st.st_size == 0) return fail(EINVAL, fmt::format("{} is empty", path));
  ImageFile image;
  image.nb_pages_ = (static_cast<std::uint64_t>(st.st_size) + kPageSize - 1) / kPageSize;
  void* p = mmap(nullptr, image.nb_pages_ * kPageSize, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (p == MAP_FAILED) return fail(errno, fmt::format("mmap {}", path));
  image.bytes_ = static_cast<const std::byte*>(p);
  return image;
}

Result<GuestMemory> GuestMemory::make(std::uint64_t nb_pages) {
  const std::size_t bytes = nb_pages * kPageSize;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return fail(errno, fmt::format("mmap of {} bytes of memory", bytes));
  madvise(p, bytes, MADV_NOHUGEPAGE);  // one fault, one page
  auto uffd = make_userfaultfd();
  if (!uffd) return std::unexpected(uffd.error());
  uffdio_register reg{
      {reinterpret_cast<std::uintptr_t>(p), bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  if (ioctl(uffd->get(), UFFDIO_REGISTER, &reg) != 0)
    return fail(errno, fmt::format("UFFDIO_REGISTER of {} bytes", bytes));
  GuestMemory memory;
  memory.base_ = static_cast<std::byte*>(p);
  memory.nb_pages_ = nb_pages;
  memory.uffd_ = std::move(*uffd);
  return memory;
}

Result<UniqueFd> hand_over(const std::string& socket_path, const GuestMemory& memory,
                           HandshakeForm form, std::chrono::milliseconds timeout) {
  auto socket = connect_within(socket_path, timeout);
  if (!socket) return socket;
  const UniqueFd second{memfd_create("sf-guest", MFD_CLOEXEC)};
  if (!second) return fail(errno, "memfd_create");
  const std::array<int, 2> fds{memory.uffd(), second.get()};
  const auto sent = send_message(socket->get(), message_of(memory, form),
                                 std::span{fds}.first(form.two_fds ? 2 : 1));
  if (!sent) return std::unexpected(sent.error());
  return socket;
}

}  // namespace snowfabric
