// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/kept_image.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

/// What takes long and nobody waits for, on a thread of its own: the poll loop must not stand still
/// for a disk, or until a second's pages have left a page table.
class Housekeeping {
 public:
  /// After EAL init.
  /// @param record_file  of the recorded working set
  /// @param kept         borrowed; nullptr: none
  Housekeeping(std::string record_file, const KeptImage* kept)
      : record_file_{std::move(record_file)}, kept_{kept} {}

  /// Called by the poll loop; done within some tenths of a second, or at the latest by the
  /// destructor.
  /// @{
  void write(std::span<const PageRange> recorded);
  void unmap_kept();
  /// @}

 private:
  struct Chores {
    Chores() { recorded.reserve(Host::kMaxRecorded); }  // a copy must not wait for memory
    std::vector<PageRange> recorded;                    // empty: nothing to write
    bool unmap = false;
  };
  void look();

  const std::string record_file_;
  const KeptImage* const kept_;
  std::mutex mutex_;  // of due_: held for a copy of a record, or less
  Chores due_, doing_;
  Watcher watcher_{[this] { look(); }};  // last: its thread uses the rest
};

}  // namespace snowfabric
