// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <vector>

#include "fabric/hash_tree.hpp"
#include "memtap-dpdk/guest_adapter.hpp"

namespace snowfabric {

/// A hash tree that Host fetches as it completes a guest: nobody faults, and each node stays
/// claimed until all are there and check() has found that they fit.
class TreeGuest final : public GuestAdapter {
 public:
  /// @param tree  to be filled; borrowed
  explicit TreeGuest(HashTree& tree);

  /// Nodes that do not fit are absent again. @pre Host has completed it
  /// @return how many they are; 0: all of the tree is right
  [[nodiscard]] std::size_t check(const Hash& root);

  std::size_t poll_faults(std::span<Gfn> /*out*/) noexcept override { return 0; }
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn /*page*/) const noexcept override { return false; }
  FailMeans fail(Gfn /*page*/) noexcept override { return FailMeans::kNotNeeded; }
  bool kill() noexcept override { return false; }
  [[nodiscard]] bool gone() const noexcept override { return false; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return {}; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

 private:
  void put(Gfn node, std::span<const std::byte, kPageSize> bytes) noexcept;

  HashTree& tree_;
  std::vector<Presence::Word> words_;
  Presence presence_;
  GuestCounters counters_;
};

}  // namespace snowfabric
