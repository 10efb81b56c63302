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

struct ServeOptions {
  BedOptions bed{.mtu = 4200, .nb_lcores = 1, .no_huge = false, .eal_args = {}};
  std::uint64_t nb_pages = 262144;  ///< of the image: 1 GiB, which no cache holds
  unsigned runs = 5;
  double seconds = 1;  ///< of one run
  std::uint64_t seed = 1;
  std::uint16_t range_pages = 64;  ///< of the cases that ask for ranges
  std::string only{};              ///< the case of this name alone; empty: all
};
/// The names of the cases.
inline constexpr std::array kServeCases{"one page", "ranges", "one page, copy", "ranges, copy"};

/// What clients ask for, and how pages leave.
struct ServeCase {
  std::string name;
  std::uint16_t nb_pages = 1;  ///< of one want; a REQUEST carries one
  TxMode tx = TxMode::kZeroCopy;
};

struct ServeResult {
  ServeCase what;
  std::vector<Pair> pairs;
};

/// One server lcore alone, over rings that it fills and empties itself: REQUEST frames in, through
/// ServerWorker and ServerEngine, page frames out, which it frees, as a NIC's queue has it do.
/// Rounds of requests are written beforehand, and not counted. By turns with a bare sender of the
/// same frames in the same order. Before each case all pages are asked for once and compared with
/// the image.
/// @return EBADMSG: a page came wrong, or not at all; EIO: mbufs leaked; EINTR: a signal; else the
///         error of the bed
[[nodiscard]] Result<std::vector<ServeResult>> run_serve(const ServeOptions& options, Image image,
                                                         const std::atomic<bool>& interrupted);

}  // namespace snowfabric::bench
