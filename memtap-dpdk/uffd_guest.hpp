// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <linux/userfaultfd.h>

#include "fabric/base/frame_number.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/kept_image.hpp"
#include "memtap-dpdk/presence_file.hpp"
#include "memtap-dpdk/process_guest.hpp"
#include "memtap-dpdk/region_map.hpp"

namespace snowfabric {

/// A guest behind a userfaultfd registered for MISSING pages. Read and write faults are answered
/// alike. Destroying it closes our copy of the userfaultfd: a guest that kept none of its own would
/// then read zeros, so destroy it only when the guest is gone or was killed.
/// Source: Documentation/admin-guide/mm/userfaultfd.rst of Linux.
class UffdGuest final : public ProcessGuest {
 public:
  /// Pages of the image that no region maps become the guest's own: nobody fetches them.
  /// @param kept  if the guest maps this file privately, a page that is in it need only be woken
  ///              for; borrowed
  UffdGuest(std::uint32_t id, Attachment attachment, PresenceFile presence,
            const KeptImage* kept = nullptr);

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  FailMeans fail(Gfn page) noexcept override;
  [[nodiscard]] bool ends_with_socket() const noexcept override { return false; }
  /// A guest that maps a kept image keeps its userfaultfd too, and hands it to the next memtap.
  [[nodiscard]] bool survives_memtap() const noexcept override { return keeps_uffd_; }
  /// Takes the userfaultfd off the memory, and tells a guest that keeps one that it may go.
  void release() noexcept override;
  [[nodiscard]] int fault_fd() const noexcept override { return uffd(); }
  [[nodiscard]] bool maps(PageRange pages) const noexcept override;

  [[nodiscard]] const RegionMap& regions() const noexcept { return regions_; }
  [[nodiscard]] int uffd() const noexcept { return uffd_.get(); }

 private:
  bool on_fault(std::uint64_t address, std::uint64_t flags, Gfn& out) noexcept;
  bool on_event(const uffd_msg& message, Gfn& out) noexcept;
  void on_remove(std::uint64_t begin, std::uint64_t end) noexcept;
  void on_fork(int child_uffd) noexcept;
  void answer_present(Gfn page, std::uint64_t address) noexcept;
  void answer_with_zeros(std::uint64_t address) noexcept;

  Install fill(PageRange pages, const std::byte* bytes) noexcept;
  [[nodiscard]] bool is_mapped(PageRange run) const noexcept;
  void settle_mapped(std::uint64_t address, PageRange run) noexcept;
  Install fill_run(std::uint64_t address, PageRange run, const std::byte* bytes) noexcept;
  Install give_up(int errnum, PageRange rest) noexcept;
  void skip(Gfn page, std::uint64_t address) noexcept;
  void settle(PageRange pages) noexcept;
  void wake(std::uint64_t address, std::uint64_t nb_pages) noexcept;

  UniqueFd uffd_;
  UniqueFd extra_;  ///< of the two-fd form: kept open, not used
  RegionMap regions_;
  const KeptImage* kept_;  ///< that the guest maps; nullptr: it has pages of its own
  bool keeps_uffd_;
  std::vector<UniqueFd> forked_;  ///< of children, kept open: closing one yields zeros
};

}  // namespace snowfabric
