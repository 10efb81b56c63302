// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <memory>
#include <span>

#include "xen-glue/xen_calls.hpp"

struct xencall_handle;

namespace snowfabric::xen {

/// Memory paging by hypercalls of our own: libxenctrl's take one page a call, and its load locks
/// and unlocks the page's memory each time, for which Linux empties the lists of every CPU. Control
/// path, but for load(); one thread.
class PagingHypercalls {
 public:
  static constexpr std::size_t kMost = 256;  ///< pages a call

  /// @return nullptr, and errno: this is no dom0, or there is no memory that stays in place
  [[nodiscard]] static std::unique_ptr<PagingHypercalls> make();
  ~PagingHypercalls();
  PagingHypercalls(const PagingHypercalls&) = delete;
  PagingHypercalls& operator=(const PagingHypercalls&) = delete;

  /// As those of XenCalls. @pre at most kMost pages, and as many errors
  /// @{
  void evict(DomId domain, std::span<const Gfn> pages, std::span<int> errors) noexcept;
  void nominate(DomId domain, std::span<const Gfn> pages, std::span<int> errors) noexcept;
  void free(DomId domain, std::span<const Gfn> pages, std::span<int> errors) noexcept;
  int load(DomId domain, Gfn page, const std::byte* bytes) noexcept;
  /// @}

 private:
  struct Shared;
  PagingHypercalls(xencall_handle* calls, void* memory) noexcept;
  void add(std::size_t at, unsigned what, DomId domain, Gfn page) noexcept;
  void add_ask(std::size_t at, DomId domain, Gfn page) noexcept;
  [[nodiscard]] int call(std::size_t nb_calls) noexcept;
  [[nodiscard]] int error(std::size_t at) const noexcept;

  xencall_handle* calls_;
  Shared* shared_;
};

}  // namespace snowfabric::xen
