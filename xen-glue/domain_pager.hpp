// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/paging_ring.hpp"

namespace snowfabric::xen {

/// Memory paging of one domain: evicts its pages, hears which of them its vCPUs touch, loads them.
/// One thread; take(), answer() and notify() never block.
class DomainPager {
 public:
  /// What a vCPU touched, or the guest dropped.
  struct Fault {
    PagingRequest request;
    bool repeated = false;  ///< somebody waits for the page already
  };

  /// @pre the domain is paused, and stays so until its pages are evicted
  /// @return as XenCalls::paging_enable and the other calls, in words
  [[nodiscard]] static Result<std::unique_ptr<DomainPager>> enable(Domain domain);
  /// The page of the ring, as it is for a pager to come. Whoever maps it before enable() can read
  /// it when that pager has died: PagingRing::left_asked.
  /// @return as XenCalls::paging_ring_page, map and populate, in words
  [[nodiscard]] static Result<ForeignPages> map_ring_page(const Domain& domain);
  /// A ring's page, mapped before its pager began.
  using RingPage = std::span<std::byte, kPageSize>;
  /// Makes room in the ring of a pager that has died, for those that wait there.
  /// @param rings  one of them is that one; the others are nobody's
  /// @param asked  gets pages as PagingRing::drain, also if this fails
  /// @return whether it was full; or as XenCalls::paging_resume, in words
  [[nodiscard]] static Result<bool> drain(const Domain& domain, std::span<const RingPage> rings,
                                          std::vector<Gfn>& asked);
  /// Pauses a domain whose pager has died, at a moment when no vCPU waits for room in the ring:
  /// while one does nobody can take over. Lets the domain run until then, paused or not, if it has
  /// a ring at all. Blocks for 0.1 s, or up to 10 s.
  /// @pre all pages that it needs to run at all are there
  /// @return whether the ring was full; ETIMEDOUT: more is asked all the time; or as drain()
  [[nodiscard]] static Result<bool> pause_drained(const Domain& domain,
                                                  std::span<const RingPage> rings,
                                                  std::vector<Gfn>& asked);
  /// Takes over the paging of a domain whose pager has died. A vCPU that waited tries again. For a
  /// page that was asked for already it does not ask: Xen takes that to be on its way, so whoever
  /// takes over has to load it. Source: hvm_hap_nested_page_fault() of xen/arch/x86/hvm/hvm.c.
  /// @pre as enable(); nobody pages the domain: one who does loses it
  /// @return as enable()
  [[nodiscard]] static Result<std::unique_ptr<DomainPager>> take_over(Domain domain);

  DomainPager(const DomainPager&) = delete;
  DomainPager& operator=(const DomainPager&) = delete;
  /// A domain that has all its pages is left with no vCPU that waits; if more waited than the ring
  /// has slots it runs meanwhile, also if it is paused, and this blocks up to 1 s. One that lacks
  /// pages is paused, and its ring stays as it is, for pause_drained(); but not if they were
  /// evicted here: then the ring goes.
  ~DomainPager();

  /// @param kept  gets the pages that Xen refused to evict, because more than the guest refers to
  ///              them: they are as they were
  [[nodiscard]] Result<void> evict(PageRange pages, std::vector<Gfn>& kept);
  /// As XenCalls::paging_nominate. @param refused  as above
  [[nodiscard]] Result<void> nominate(std::span<const Gfn> pages, std::vector<Gfn>& refused);
  static constexpr std::size_t kMostFreed =
      kRingSlots / 2;  ///< the rest of the ring is the guest's
  /// Makes nominated pages the guest's, asked for or not; where none is, good. Each makes a
  /// request.
  /// @pre at most kMostFreed, and none is evicted
  /// @return 0; EAGAIN: not all, and once what waits in the ring is answered, again; or another
  /// errno
  int set_free(std::span<const Gfn> pages) noexcept;

  /// Readable when take() has something to do.
  [[nodiscard]] int fd() const noexcept { return port_->fd(); }
  /// Before a burst of take(): what comes from now on makes fd() readable again.
  void acknowledge() noexcept { port_->acknowledge(); }
  /// The next fault. Who caused it waits for answer().
  [[nodiscard]] PagingRing::Take take(Fault& out) noexcept;
  [[nodiscard]] bool waits(Gfn page) const noexcept;
  /// As XenCalls::paging_load.
  int load(Gfn page, const std::byte* bytes) noexcept {
    return domain_.calls().paging_load(domain_.id(), page, bytes);
  }
  /// Lets everybody try again who waits for the page, after notify(). @return how many
  std::size_t answer(Gfn page) noexcept;
  /// Tells Xen of the answers since the last call, if there were any.
  void notify() noexcept;

  [[nodiscard]] const Domain& domain() const noexcept { return domain_; }

 private:
  enum class RingFate : std::uint8_t { kStays, kIsTakenAway };
  [[nodiscard]] static Result<std::unique_ptr<DomainPager>> make(Domain domain, RingFate fate);
  DomainPager(Domain domain, ForeignPages ring_page);
  [[nodiscard]] Result<void> start();
  [[nodiscard]] static Result<bool> let_all_ask(const Domain& domain,
                                                std::span<const RingPage> rings,
                                                std::vector<Gfn>& asked, bool& paused);
  [[nodiscard]] static Result<void> release_vcpus(Domain domain, std::uint32_t nb_vcpus);
  void answer_all() noexcept;
  [[nodiscard]] Result<void> sort_out(const char* call, std::span<const Gfn> pages,
                                      std::span<const int> errors, std::vector<Gfn>& busy) const;

  Domain domain_;
  ForeignPages ring_page_;
  PagingRing ring_;
  std::unique_ptr<EventPort> port_;
  std::vector<PagingRequest> waiting_;  // at most kRingSlots
  bool enabled_ = false;
  bool was_full_ = false;  // somebody may have waited for room
  /// The ring goes also where pages are missing: the domain has not run since they were evicted
  /// here; or nobody had this ring but for release_vcpus(), and the next pager has its own.
  bool takes_ring_along_ = false;
};

}  // namespace snowfabric::xen
