// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/frozen_domain.hpp"
#include "xen-glue/guest_bitmap.hpp"

namespace snowfabric::xen {

/// A memfd for a copy of RAM.
/// @return errno of the call
[[nodiscard]] Result<UniqueFd> make_copy(std::uint64_t nb_pages);
/// Ends the writing into it, for everybody.
[[nodiscard]] Result<void> seal_copy(int fd);

/// Copies a domain's RAM while it runs, and at last what was written meanwhile: Xen notes that from
/// begin() to the end of this object.
class Copier {
 public:
  /// @param fd  of make_copy(nb_pages), borrowed; gets the domain's RAM, page by gfn
  Copier(Domain domain, int fd, std::uint64_t nb_pages);
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;
  ~Copier();

  /// @return EINVAL: Xen notes it already, for somebody else; or what the call reported
  [[nodiscard]] Result<void> begin();
  /// Leaves out pages that were free since begin(), until they are written. @pre no look() yet
  void skip(const FreeWords& free);
  /// @return how many pages were written since the last look; all, if the domain has more or fewer
  ///         than then: a page that it has got and written since is not noted. One that was given
  ///         back and got again between two looks is missed.
  [[nodiscard]] Result<std::size_t> look();
  /// Ends what begin() began.
  void end() noexcept;
  /// Of the pages that were skipped those that nothing was written to until the last look.
  [[nodiscard]] FreeWords still_free() const;
  /// Copies the pages of the last look; of no look, all.
  /// @return ECANCELED: stopped; ENOSPC, ENOMEM: no memory for it; or what a call reported
  [[nodiscard]] Result<void> copy(const FreezeOptions& options);

  /// Pages that were skipped, and of them those that nothing was written to, or zeros.
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> nb_free_and_avoided() const;
  /// Pages that were skipped, and those of still_free().
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> nb_free_and_still_free() const;
  /// Pages that the copy does not hold.
  [[nodiscard]] std::vector<PageRange> zeros() const;

 private:
  [[nodiscard]] std::vector<Gfn> dirty_pages() const;
  [[nodiscard]] Result<void> copy_burst(std::span<const Gfn> pages);
  [[nodiscard]] std::size_t nb_in_run(std::span<const Gfn> pages) const noexcept;
  [[nodiscard]] Result<void> write_run(Gfn first, std::span<const std::byte> bytes) const;
  [[nodiscard]] bool was_free(Gfn page) const noexcept;
  [[nodiscard]] bool is_dirty(Gfn page) const noexcept;
  template <class Counts>
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> nb_free_and(Counts&& counts) const;

  Domain domain_;
  int fd_;
  std::uint64_t nb_pages_ = 0;  // that the domain had at the last look
  std::vector<std::uint64_t> dirty_;
  std::vector<bool> holds_;  // of each page: the copy has its bytes
  FreeWords free_;           // empty: nobody said
  bool logs_ = false;
};

}  // namespace snowfabric::xen
