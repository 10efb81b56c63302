// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/domain_pager.hpp"

namespace snowfabric::xen {

struct NominateOptions {
  std::span<const std::uint64_t>
      free;                       ///< bit p % 64 of word p / 64: nobody needs page p; or empty
  std::span<const Gfn> busy;      ///< the domain needs them at once; ascending
  std::function<void()> enabled;  ///< called before the first is nominated; may be empty
};

/// A domain's RAM that stays where it is while the domain runs on: a vCPU that touches a page, were
/// it only to read it, waits until that page is set free. The domain's own pager, so that nobody
/// else may be. One thread.
class NominatedRam {
 public:
  /// Enables paging, nominates and maps all pages but those in the lists.
  /// @pre the domain stands
  /// @return as DomainPager::enable and Domain::map
  [[nodiscard]] static Result<std::unique_ptr<NominatedRam>> take(Domain domain,
                                                                  std::uint64_t nb_pages,
                                                                  const NominateOptions& options);
  NominatedRam(const NominatedRam&) = delete;
  NominatedRam& operator=(const NominatedRam&) = delete;
  /// Gives back what was not, unless all was: without a pager the guest crashes at such a page.
  ~NominatedRam();

  /// Page by gfn. Those of left_out() are not to be touched.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {ram_.bytes(), ram_.nb_pages() * kPageSize};
  }
  /// Of the busy pages, and those that Xen does not nominate because more than the guest refers to
  /// them: taken while the domain stood.
  struct Copy {
    Gfn page;
    std::vector<std::byte> bytes;
  };
  [[nodiscard]] std::size_t nb_copies() const noexcept { return copies_.size(); }
  [[nodiscard]] std::vector<Copy> take_copies() noexcept { return std::exchange(copies_, {}); }
  /// Free ones, and those the guest has given back to Xen. Ascending.
  [[nodiscard]] const std::vector<PageRange>& left_out() const noexcept { return left_out_; }

  [[nodiscard]] DomainPager& pager() noexcept { return *pager_; }

  /// Gives the guest pages back while it runs, and answers every request that waits.
  /// @param has_it  tells of a page whether a request for it was answered
  /// @return 0, or the errno of a call
  int give_back(PageRange pages, const std::function<bool(Gfn)>& has_it) noexcept;
  /// The guest has every page, by give_back() or because a request was answered.
  void all_given_back() noexcept { all_given_back_ = true; }

  /// Gives a domain all its pages back whose NominatedRam has died with its process.
  /// @param ring_page  as of DomainPager::drain; nullptr: a ring that is full stays
  /// @return EBUSY: it lacks pages, so it was not ours; as DomainPager::take_over; or what a call
  ///         reported
  [[nodiscard]] static Result<void> give_back_all(Domain domain, std::uint64_t nb_pages,
                                                  const ForeignPages* ring_page);

 private:
  NominatedRam(std::unique_ptr<DomainPager> pager, ForeignPages ram)
      : pager_{std::move(pager)}, ram_{std::move(ram)} {}

  [[nodiscard]] static Result<void> give_back_on_dead_ring(const Domain& domain,
                                                           std::uint64_t nb_pages,
                                                           const ForeignPages& ring_page);
  [[nodiscard]] Result<void> look_over(std::span<const std::uint64_t> free,
                                       std::span<const Gfn> to_copy);

  std::unique_ptr<DomainPager> pager_;
  ForeignPages ram_;
  std::vector<Copy> copies_;
  std::vector<PageRange> left_out_;
  bool all_given_back_ = false;
};

}  // namespace snowfabric::xen
