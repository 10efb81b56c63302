// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen {

/// Most pages to map in one call: larger bursts gain nothing.
inline constexpr std::size_t kMapBurstPages = 1024;

/// Pages of a domain mapped here; unmapped with this object, before which `calls` must not go.
class ForeignPages {
 public:
  ForeignPages(XenCalls& calls, std::byte* first, std::vector<int> errors) noexcept
      : calls_{&calls}, first_{first}, errors_{std::move(errors)} {}
  ForeignPages(ForeignPages&& from) noexcept
      : calls_{from.calls_},
        first_{std::exchange(from.first_, nullptr)},
        errors_{std::move(from.errors_)} {}
  ForeignPages& operator=(ForeignPages&&) = delete;
  ~ForeignPages() {
    if (first_ != nullptr) calls_->unmap(first_, errors_.size());
  }

  [[nodiscard]] std::size_t nb_pages() const noexcept { return errors_.size(); }
  /// @return 0, or the errno why that page cannot be touched
  [[nodiscard]] int error(std::size_t index) const noexcept { return errors_[index]; }
  /// @pre error(index) == 0
  [[nodiscard]] std::span<std::byte, kPageSize> page(std::size_t index) const noexcept {
    return std::span<std::byte, kPageSize>{first_ + index * kPageSize, kPageSize};
  }

 private:
  XenCalls* calls_;
  std::byte* first_;
  std::vector<int> errors_;
};

/// One domain of this host, by its number. Each function is a call of XenCalls whose error names
/// the domain, and what else it was about. Control path.
class Domain {
 public:
  Domain(XenCalls& calls, DomId id) noexcept : calls_{&calls}, id_{id} {}

  [[nodiscard]] DomId id() const noexcept { return id_; }
  [[nodiscard]] XenCalls& calls() const noexcept { return *calls_; }

  [[nodiscard]] Result<DomainInfo> info() const;
  [[nodiscard]] Result<void> pause() const;
  [[nodiscard]] Result<void> unpause() const;
  [[nodiscard]] Result<void> resume() const;
  [[nodiscard]] Result<std::vector<std::byte>> context() const;
  [[nodiscard]] Result<void> set_context(std::span<const std::byte> context) const;
  [[nodiscard]] Result<TscInfo> tsc() const;
  [[nodiscard]] Result<void> set_tsc(const TscInfo& tsc) const;
  [[nodiscard]] Result<void> populate(std::span<const Gfn> pages) const;

  /// The mapping may hold pages with errors.
  [[nodiscard]] Result<ForeignPages> map(std::span<const Gfn> pages, Access access) const;
  /// @return also the errno of a page that could not be mapped
  [[nodiscard]] Result<ForeignPages> map_page(Gfn page, Access access) const;
  /// Copies pages in bursts of kMapBurstPages.
  /// @param out      as many whole pages as `pages`
  /// @param missing  gets those the domain does not have; their place in `out` is left alone
  /// @return errno of the first page that could not be mapped for another reason
  [[nodiscard]] Result<void> read(std::span<const Gfn> pages, std::span<std::byte> out,
                                  std::vector<Gfn>& missing) const;

  /// @return fail() with the call, this domain, and the first of its pages, if errnum is not 0
  /// @{
  [[nodiscard]] Result<void> checked(int errnum, const char* call) const;
  [[nodiscard]] Result<void> checked(int errnum, const char* call, Gfn page) const;
  /// @}

 private:
  XenCalls* calls_;
  DomId id_;
};

[[nodiscard]] std::string to_string(DomId domain);

}  // namespace snowfabric::xen
