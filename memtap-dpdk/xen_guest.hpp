// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/presence_file.hpp"
#include "xen-glue/domain_pager.hpp"

namespace snowfabric {

/// What a clone domain needs of its parent besides pages.
struct XenSeed {
  std::vector<std::byte> context;  ///< HVM save record
  xen::TscInfo tsc;
  /// Pages that must be in before the clone runs, since Xen itself touches them and does not ask
  /// the pager: those that hold the vCPUs' registered vcpu_info.
  std::vector<Gfn> eager;
};

/// A PVH or HVM domain that starts empty: a shell as large as its parent, created paused, whose
/// pages are evicted. Its eager pages are reported as the first faults; once they are in, it gets
/// the parent's state and runs.
class XenGuest final : public GuestAdapter {
 public:
  /// Evicts the shell's memory. Control path: takes some 0.1 ms a page.
  /// @param domain  paused and never run
  /// @return as DomainPager::enable and evict; or what setting the TSC reported
  [[nodiscard]] static Result<std::unique_ptr<XenGuest>> adopt(xen::Domain domain,
                                                               PresenceFile presence, XenSeed seed);

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn page) const noexcept override;
  /// Pauses the domain. Who waits asks again when it is unpaused.
  FailMeans fail(Gfn page) noexcept override;
  /// Destroys the domain.
  bool kill() noexcept override;
  [[nodiscard]] bool gone() const noexcept override { return gone_; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return trouble_; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

  /// Whether it has the parent's state, and was let run.
  [[nodiscard]] bool started() const noexcept { return started_; }
  /// Readable when poll_faults() has something to do.
  [[nodiscard]] int fault_fd() const noexcept { return pager_->fd(); }
  /// Looks whether the domain lives: one that died while it waits for a page shows it nowhere else.
  void check_alive() noexcept;

 private:
  XenGuest(std::unique_ptr<xen::DomainPager> pager, PresenceFile file, XenSeed seed,
           std::vector<Gfn> kept);
  [[nodiscard]] bool on_fault(const xen::DomainPager::Fault& fault) noexcept;
  [[nodiscard]] Install fill(PageRange pages, const std::byte* bytes) noexcept;
  [[nodiscard]] Install put(Gfn page, const std::byte* bytes) noexcept;
  [[nodiscard]] int write(Gfn page, const std::byte* bytes) noexcept;
  [[nodiscard]] Install give_up(int errnum, Gfn page) noexcept;
  void answer_with_zeros(Gfn page) noexcept;
  void skip(Gfn page) noexcept;
  [[nodiscard]] Install start() noexcept;
  void set_trouble(std::string_view why) noexcept;

  std::unique_ptr<xen::DomainPager> pager_;
  PresenceFile file_;
  Presence presence_;
  XenSeed seed_;
  std::vector<Gfn> kept_;  // not evicted; ascending
  std::size_t nb_eager_reported_ = 0, nb_eager_in_ = 0;
  bool started_ = false, gone_ = false;
  std::string_view trouble_;
  GuestCounters counters_;
};

}  // namespace snowfabric
