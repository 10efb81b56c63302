// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/image.hpp"
#include "tools/bench_bed.hpp"

namespace snowfabric::bench {

struct InstallOptions {
  unsigned runs = 5;
  std::uint64_t seed = 1;
  std::uint64_t nb_pages = 65536;  ///< of the image
  std::string only{};              ///< the case of this name alone; empty: all
};

/// How pages come to be installed.
struct InstallCase {
  const char* name;
  std::uint32_t nb_pages;  ///< neighbours at a time
  unsigned nb_threads;     ///< that fault them; 0: none waits for a page
};
inline constexpr std::array<InstallCase, 7> kInstallCases{{{"one page", 1, 0},
                                                           {"16 neighbours", 16, 0},
                                                           {"64 neighbours", 64, 0},
                                                           {"faults of 1 thread", 1, 1},
                                                           {"faults of 2 threads", 1, 2},
                                                           {"faults of 4 threads", 1, 4},
                                                           {"faults of 8 threads", 1, 8}}};

struct InstallResult {
  InstallCase what;
  std::vector<Pair> pairs;      ///< bare: the same system calls, and the checksum
  std::vector<double> copying;  ///< pages per second of the system calls alone
};

/// memtap's way into a guest behind a userfaultfd, alone: CRC32C of each page, `UffdGuest` with its
/// claims and presence, UFFDIO_COPY, one thread. By turns with a loop of the same system calls in
/// the same random order, with and without the checksum. All bytes are compared after each run. The
/// guest is this process.
/// @return ENOSYS: no userfaultfd; EBADMSG: bytes differ; EINTR: a signal; else errno of a call
[[nodiscard]] Result<std::vector<InstallResult>> run_install(const InstallOptions& options,
                                                             const Image& image,
                                                             const std::atomic<bool>& interrupted);

}  // namespace snowfabric::bench
