// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/latency.hpp"
#include "fabric/base/result.hpp"
#include "tools/load_members.hpp"

namespace snowfabric::bench {

/// Pages in the order in which a clone touched them.
using LoadTrace = std::vector<std::uint32_t>;

/// Traces as `memtap-dpdk --record` writes them.
/// @return EINVAL: one is empty, or names a page beyond kMaxLoadPages; EFBIG: it has more pages
///         than that, some of them again and again; or as read_page_list()
[[nodiscard]] Result<std::vector<LoadTrace>> read_traces(std::span<const std::string> paths);

/// Traces drawn from a seed: half of each are pages that all have, half are its own, in runs as
/// guests touch them and in an order that is its own.
/// @param nb_touched  rounded down to a multiple of 16, two runs
[[nodiscard]] std::vector<LoadTrace> make_traces(std::uint32_t nb_traces, std::uint32_t nb_touched,
                                                 std::uint32_t nb_pages, std::uint64_t seed);

/// The guests of all members: each has vCPUs that touch the pages of its trace, one after the other
/// and each when the page before it has come. Several may wait for the same page. Pure: no I/O, no
/// clock. One lcore.
class LoadReplay {
 public:
  /// @param traces  borrowed, none empty; members take them in turns
  /// @param nb_pages  of the image: more than any page in the traces
  LoadReplay(LoadMembers& members, std::span<const LoadTrace> traces, std::uint32_t nb_pages,
             unsigned nb_vcpus);

  /// Every vCPU touches its first page.
  void begin(Nanos now);
  /// A PAGE frame that the members' engines have taken, for all or for one of them.
  void on_page(const wire::Frame& frame, const MacAddr& dst, Nanos now);

  [[nodiscard]] bool done() const noexcept { return nb_done_ == guests_.size(); }
  [[nodiscard]] std::size_t nb_done() const noexcept { return nb_done_; }
  /// Of pages that were asked for: from the touch to the arrival.
  [[nodiscard]] const LatencyHistogram& waits() const noexcept { return waits_; }
  [[nodiscard]] Nanos longest_wait() const noexcept { return longest_wait_; }
  [[nodiscard]] std::uint64_t nb_waits() const noexcept { return nb_waits_; }
  [[nodiscard]] std::uint64_t nb_touched() const noexcept { return nb_touched_; }
  /// Frames that brought a page whose checksum was wrong to whoever waited for it.
  [[nodiscard]] std::uint64_t nb_bad_crc() const noexcept { return nb_bad_crc_; }

 private:
  struct Wait {
    std::uint32_t page;
    Nanos since;
  };
  struct Guest {
    std::span<const std::uint32_t> trace;
    std::size_t next = 0;
    std::vector<bool> has;    // by page
    std::vector<Wait> waits;  // at most one a vCPU
  };

  void touch(std::uint32_t member, Nanos now);
  bool take(std::uint32_t member, wire::Frame frame, Nanos now);
  bool end_waits(Guest& guest, std::uint64_t page, Nanos now);

  LoadMembers& members_;
  std::vector<Guest> guests_;
  unsigned nb_vcpus_;
  std::size_t nb_done_ = 0;
  LatencyHistogram waits_;
  Nanos longest_wait_{0};
  std::uint64_t nb_waits_ = 0, nb_touched_ = 0, nb_bad_crc_ = 0;
};

}  // namespace snowfabric::bench
