// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include <sys/mman.h>
#include <sys/stat.h>

#include "fabric/base/unique_fd.hpp"

namespace snowfabric::fuzz {

inline void check(bool holds) {
  if (!holds) std::abort();  // libFuzzer keeps the input
}

/// For readers that want a path: a file in memory, of its owner alone.
class File {
 public:
  const std::string& holding(std::span<const std::uint8_t> bytes) {
    check(ftruncate(fd_.get(), 0) == 0);
    check(pwrite(fd_.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return path_;
  }

 private:
  UniqueFd fd_ = [] {
    UniqueFd fd{memfd_create("fuzz", MFD_CLOEXEC)};
    check(fd && fchmod(fd.get(), 0600) == 0);
    return fd;
  }();
  std::string path_ = "/proc/self/fd/" + std::to_string(fd_.get());
};

}  // namespace snowfabric::fuzz
