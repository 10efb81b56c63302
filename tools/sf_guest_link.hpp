// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// A whole file, mapped read-only. Its last page is filled up with zeros by the kernel.
class ImageFile {
 public:
  /// @return EINVAL: empty; or what open, fstat or mmap reported
  static Result<ImageFile> map(const std::string& path);
  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }
  [[nodiscard]] const std::byte* page(std::uint64_t gfn) const noexcept {
    return bytes_ + gfn * kPageSize;
  }

 private:
  const std::byte* bytes_ = nullptr;  // mapped until the process ends
  std::uint64_t nb_pages_ = 0;
};

/// Memory without pages: each is asked for through a userfaultfd when it is first touched.
class GuestMemory {
 public:
  /// @return EPERM: not allowed to use userfaultfd; or what the call named reported
  static Result<GuestMemory> make(std::uint64_t nb_pages);
  [[nodiscard]] std::byte* page(std::uint64_t gfn) const noexcept {
    return base_ + gfn * kPageSize;
  }
  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }
  [[nodiscard]] int uffd() const noexcept { return uffd_.get(); }

 private:
  std::byte* base_ = nullptr;  // mapped until the process ends
  std::uint64_t nb_pages_ = 0;
  UniqueFd uffd_;
};

struct HandshakeForm {
  bool two_fds = false;  ///< pass a second descriptor
  bool old = false;      ///< without page_size, as the first Firecracker versions
};

/// Connects to memtap, waiting until it listens, and hands the memory over.
/// @return the socket, which must stay open: ETIMEDOUT if nobody listened in time
Result<UniqueFd> hand_over(const std::string& socket_path, const GuestMemory& memory,
                           HandshakeForm form, std::chrono::milliseconds timeout);

}  // namespace snowfabric
