// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/process_guest.hpp"
#include "xen-glue/domain_pager.hpp"
#include "xen-glue/guest_bitmap.hpp"

namespace snowfabric {

/// Pages of a clone that are not like the others: see xen::DomainState.
struct XenPages {
  std::vector<Gfn> eager;  ///< must be in before it runs; ascending
  std::optional<PageRange> bitmap;
};

/// What every Xen clone of one descriptor needs. Made once.
struct XenSeed {
  std::unique_ptr<xen::XenCalls> calls;
  XenPages pages;

  /// @return as xen::state_of and xen::open_libxen
  [[nodiscard]] static Result<XenSeed> from(const Descriptor& descriptor);
};

/// A domain whose pages are evicted: the shell of a clone, which sf-xen-clone made and gave the
/// parent's state, paused; or one whose memtap died. Its process is the sf-xen-clone that keeps it.
/// The eager pages are reported as the first faults; once they are in, the domain runs.
/// Where the guest has an agent, the presence bits are in the guest's memory, and both flip them.
/// Else a page counts as absent until it was loaded here, so after a memtap's death all are:
/// loading one that is there does it no harm, for Xen refuses.
/// Once a page was asked for, Xen takes it to be on its way: a vCPU that touches it asks nobody,
/// and tries again and again. So no request is answered before its page is there, and a domain that
/// is taken over from a memtap that died comes with the pages which that had been asked for.
/// Source: hvm_hap_nested_page_fault() of xen/arch/x86/hvm/hvm.c.
class XenGuest final : public ProcessGuest {
 public:
  /// @param calls  borrowed
  /// @return as DomainPager::enable and take_over, and those of GuestBitmap
  [[nodiscard]] static Result<std::unique_ptr<XenGuest>> adopt(std::uint32_t id,
                                                               XenAttachment attachment,
                                                               PresenceFile presence,
                                                               xen::XenCalls& calls,
                                                               const XenPages& pages);

  ~XenGuest() override;
  XenGuest(const XenGuest&) = delete;
  XenGuest& operator=(const XenGuest&) = delete;

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn page) const noexcept override;
  /// Pauses the domain. When somebody unpauses it the page is a fault again.
  FailMeans fail(Gfn page) noexcept override;
  /// Destroys the domain, and so ends its sf-xen-clone.
  bool kill() noexcept override;
  /// Its sf-xen-clone is the one that lives as long as it.
  [[nodiscard]] bool ends_with_socket() const noexcept override { return true; }
  /// It stands still until the next memtap takes it up.
  [[nodiscard]] bool survives_memtap() const noexcept override { return true; }
  [[nodiscard]] int fault_fd() const noexcept override { return pager_->fd(); }

  /// Whether it was let run.
  [[nodiscard]] bool started() const noexcept { return started_; }

 private:
  using Clock = std::chrono::steady_clock;
  XenGuest(std::uint32_t id, Peer peer, PresenceFile presence,
           std::unique_ptr<xen::DomainPager> pager, std::optional<xen::GuestBitmap> bitmap,
           std::span<const Gfn> eager);
  [[nodiscard]] bool on_fault(const xen::DomainPager::Fault& fault) noexcept;
  [[nodiscard]] Install fill(PageRange pages, const std::byte* bytes) noexcept;
  [[nodiscard]] Install put(Gfn page, const std::byte* bytes) noexcept;
  [[nodiscard]] Install give_up(int errnum, Gfn page) noexcept;
  void answer_with_zeros(Gfn page) noexcept;
  [[nodiscard]] int load_zeros(Gfn page) noexcept;
  [[nodiscard]] bool give_zeros(Gfn page) noexcept;
  void answer_present(Gfn page) noexcept;
  [[nodiscard]] std::size_t report_failed(std::span<Gfn> out) noexcept;
  [[nodiscard]] std::size_t report_left(std::span<Gfn> out) noexcept;
  void starve(Gfn page) noexcept;
  void retry_starved() noexcept;
  void answer_settled(Gfn page) noexcept;
  void skip(Gfn page) noexcept;
  [[nodiscard]] bool is_eager(Gfn page) const noexcept;
  [[nodiscard]] Install start() noexcept;

  std::unique_ptr<xen::DomainPager> pager_;
  std::optional<xen::GuestBitmap> bitmap_;  // whose words presence_ looks at
  std::vector<Gfn> eager_;
  std::vector<Gfn> starved_;  // waited for, and there was no memory for their zeros
  std::vector<Gfn> failed_;   // waited for, and could not be had
  Clock::time_point next_look_{}, next_retry_{};
  std::vector<Gfn> left_asked_;  // of a memtap that died; ascending
  std::size_t nb_left_reported_ = 0;
  std::size_t nb_eager_reported_ = 0, nb_eager_in_ = 0;
  bool started_ = false;
};

}  // namespace snowfabric
