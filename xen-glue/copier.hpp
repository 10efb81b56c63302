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

/// A memfd and its bytes, while they are written.
class CopyTarget {
 public:
  /// @return errno of the call: no memory for it
  [[nodiscard]] static Result<CopyTarget> make(std::uint64_t nb_pages);
  CopyTarget(CopyTarget&& from) noexcept
      : fd_{std::move(from.fd_)}, bytes_{std::exchange(from.bytes_, {})} {}
  CopyTarget& operator=(CopyTarget&&) = delete;
  ~CopyTarget() { unmap(); }

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  /// Ends the writing, for everybody.
  [[nodiscard]] Result<UniqueFd> seal() &&;

 private:
  CopyTarget() = default;
  void unmap() noexcept;

  UniqueFd fd_;
  std::span<std::byte> bytes_;
};

/// Copies a domain's RAM while it runs, and at last what was written meanwhile: Xen notes that from
/// begin() to the end of this object.
class Copier {
 public:
  /// @param out  borrowed; the domain's RAM, page by gfn
  Copier(Domain domain, std::span<std::byte> out);
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;
  ~Copier();

  /// @return EINVAL: Xen notes it already, for somebody else; or what the call reported
  [[nodiscard]] Result<void> begin();
  /// Leaves out pages that were free since begin(), until they are written. @pre no look() yet
  void skip(const FreeWords& free);
  /// @return how many pages were written since the last look
  [[nodiscard]] Result<std::size_t> look();
  /// Copies the pages of the last look; of no look, all.
  /// @return ECANCELED: stopped; or what a call reported
  [[nodiscard]] Result<void> copy(const FreezeOptions& options);

  /// Pages that were skipped, and of them those that nothing was written to, or zeros.
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> nb_free_and_avoided() const;
  /// Pages that the copy does not hold.
  [[nodiscard]] std::vector<PageRange> zeros() const;

 private:
  [[nodiscard]] std::vector<Gfn> dirty_pages() const;
  [[nodiscard]] Result<void> copy_burst(std::span<const Gfn> pages);
  [[nodiscard]] bool copy_page(Gfn page, std::span<std::byte, kPageSize> bytes) const noexcept;
  [[nodiscard]] bool was_free(Gfn page) const noexcept;

  Domain domain_;
  std::span<std::byte> out_;
  std::vector<std::uint64_t> dirty_;
  std::vector<bool> holds_;  // of each page: out_ has its bytes
  FreeWords free_;           // empty: nobody said
  bool logs_ = false;
};

}  // namespace snowfabric::xen
