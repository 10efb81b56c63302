// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/image.hpp"
#include "tools/bench_bed.hpp"
#include "tools/bench_fetch.hpp"

namespace snowfabric::bench {

struct RingOptions {
  BedOptions bed;
  unsigned runs = 5;
  std::uint64_t seed = 1;
  TxMode tx = TxMode::kCopy;
  Mode mode = Mode::kList;
  double max_rate_gbps = 0;  ///< 0: the profile's
  bool sealed = false;       ///< the fabric's frames; the bare ones go in the clear
  bool hash_tree = false;    ///< the fabric's client holds each page to it
};

struct RingResult {
  std::vector<Pair> pairs;
  Snapshot counters;  ///< both sides, of the last fabric run
  /// The flow control's rate, not the CPUs, held a run back.
  bool flow_limited = false;
};

/// One server and one client lcore over two rings in this process: bare and fabric by turns. Every
/// byte is compared after each run.
/// @return EBADMSG: bytes differ or pages are missing; EIO: mbufs leaked; EINTR: a signal; else the
///         error of EAL, port or arena
[[nodiscard]] Result<RingResult> run_ring(const RingOptions& options, Image image,
                                          const std::atomic<bool>& interrupted);

}  // namespace snowfabric::bench
