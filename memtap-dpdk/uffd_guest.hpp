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
#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/presence_file.hpp"
#include "memtap-dpdk/region_map.hpp"

namespace snowfabric {

/// A guest behind a userfaultfd registered for MISSING pages. Read and write faults are answered
/// alike. Destroying it closes our copy of the userfaultfd: a guest that kept none of its own would
/// then read zeros, so destroy it only when the guest is gone or was killed.
/// Source: Documentation/admin-guide/mm/userfaultfd.rst of Linux.
class UffdGuest final : public GuestAdapter {
 public:
  /// Pages of the image that no region maps become the guest's own: nobody fetches them.
  UffdGuest(std::uint32_t id, Attachment attachment, PresenceFile presence);

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn page) const noexcept override { return reported(page); }
  FailMeans fail(Gfn page) noexcept override;
  bool kill() noexcept override;
  [[nodiscard]] bool gone() const noexcept override { return gone_; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return trouble_; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] pid_t pid() const noexcept { return attachment_.pid; }
  [[nodiscard]] const RegionMap& regions() const noexcept { return regions_; }
  [[nodiscard]] const std::string& presence_path() const noexcept { return file_.path(); }
  /// To wait on; they stay the guest's.
  [[nodiscard]] int uffd() const noexcept { return attachment_.uffd.get(); }
  [[nodiscard]] int socket() const noexcept { return attachment_.socket.get(); }
  [[nodiscard]] int pidfd() const noexcept { return attachment_.pidfd.get(); }
  /// The socket hung up or the process ended.
  void mark_gone() noexcept { gone_ = true; }

 private:
  bool on_fault(std::uint64_t address, std::uint64_t flags, Gfn& out) noexcept;
  bool on_event(const uffd_msg& message, Gfn& out) noexcept;
  void on_remove(std::uint64_t begin, std::uint64_t end) noexcept;
  void on_fork(int child_uffd) noexcept;
  void answer_with_zeros(std::uint64_t address) noexcept;

  Install fill(PageRange pages, const std::byte* bytes) noexcept;
  Install fill_run(std::uint64_t address, PageRange run, const std::byte* bytes) noexcept;
  Install give_up(int errnum, PageRange rest) noexcept;
  void skip(Gfn page, std::uint64_t address) noexcept;
  void settle(PageRange pages) noexcept;
  void wake(std::uint64_t address, std::uint64_t nb_pages) noexcept;
  void set_trouble(std::string_view why) noexcept;

  [[nodiscard]] bool reported(Gfn page) const noexcept {
    return (reported_[page.value / 64] >> (page.value % 64) & 1U) != 0;
  }
  void set_reported(Gfn page) noexcept {
    reported_[page.value / 64] |= std::uint64_t{1} << (page.value % 64);
  }
  void clear_reported(Gfn page) noexcept {
    reported_[page.value / 64] &= ~(std::uint64_t{1} << (page.value % 64));
  }

  std::uint32_t id_;
  Attachment attachment_;
  PresenceFile file_;
  Presence presence_;
  RegionMap regions_;
  std::vector<std::uint64_t> reported_;  ///< one bit a page: a vCPU waits and the engine knows
  std::vector<UniqueFd> forked_;         ///< of children, kept open: closing one yields zeros
  GuestCounters counters_;
  std::string_view trouble_;
  bool gone_ = false;
};

}  // namespace snowfabric
