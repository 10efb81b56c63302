// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/base/unix_socket.hpp"

/// The guest's end of the handshake, for tests.
namespace snowfabric::testing {

/// A folder that goes away with the test.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "snowfabric-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "mkdtemp " << name;
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string operator/(std::string_view name) const {
    return path_ + "/" + std::string{name};
  }

 private:
  std::string path_;
};

/// Anonymous memory, or a file mapped privately, by default under a userfaultfd for MISSING pages.
class UffdMemory {
 public:
  explicit UffdMemory(std::size_t nb_pages,
                      std::uint64_t features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP,
                      int file = -1)
      : bytes_{nb_pages * kPageSize},
        fd_{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))} {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE, file, 0);
    if (p == MAP_FAILED || !fd_) return;
    memory_ = static_cast<std::byte*>(p);
    madvise(p, bytes_, MADV_NOHUGEPAGE);
    uffdio_api api{UFFD_API, features, 0};
    uffdio_register reg{{base(), bytes_}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (ioctl(fd_.get(), UFFDIO_API, &api) != 0 || ioctl(fd_.get(), UFFDIO_REGISTER, &reg) != 0)
      ADD_FAILURE() << "userfaultfd registration: " << std::strerror(errno);
  }
  UffdMemory(const UffdMemory&) = delete;
  UffdMemory& operator=(const UffdMemory&) = delete;
  ~UffdMemory() {
    if (memory_ == nullptr) return;
    uffdio_range all{base(), bytes_};  // else munmap waits until somebody reads its event
    ioctl(fd_.get(), UFFDIO_UNREGISTER, &all);
    munmap(memory_, bytes_);
  }

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] std::uint64_t base() const noexcept {
    return reinterpret_cast<std::uintptr_t>(memory_);
  }
  [[nodiscard]] std::byte* page(std::size_t i) const noexcept { return memory_ + i * kPageSize; }

 private:
  std::size_t bytes_;
  UniqueFd fd_;
  std::byte* memory_ = nullptr;
};

inline UniqueFd connect_to(const std::string& path) {
  UniqueFd fd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return {};
  return fd;
}

/// Whether all of it was sent.
inline bool send_with_fds(int socket, std::string_view bytes, std::span<const int> fds) {
  return snowfabric::send_with_fds(socket, bytes, fds) == static_cast<ssize_t>(bytes.size());
}

inline bool send_with_fds(int socket, std::string_view bytes, std::initializer_list<int> fds) {
  return send_with_fds(socket, bytes, std::span{fds.begin(), fds.size()});
}

/// Descriptors this process has open, to see that none leaks.
inline std::size_t count_open_fds() {
  std::size_t n = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator{"/proc/self/fd"})
    ++n;
  return n;
}

}  // namespace snowfabric::testing
