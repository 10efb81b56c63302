// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cerrno>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen {

/// Most pages to map in one call where not all are wanted at once: larger bursts gain nothing.
inline constexpr std::size_t kMapBurstPages = 1024;

/// Of a mapping: no page there. Of one that was never populated, Xen says so in two ways.
[[nodiscard]] constexpr bool is_missing(int errnum) noexcept {
  return errnum == EINVAL || errnum == ENOENT;
}

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
  /// Of the first page; the others lie behind it.
  [[nodiscard]] const std::byte* bytes() const noexcept { return first_; }
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
  /// A node of the domain's own folder in xenstore, e.g. "memory/target".
  /// @{
  [[nodiscard]] Result<std::string> store_read(std::string_view node) const;
  [[nodiscard]] Result<void> store_write(std::string_view node, const std::string& value) const;
  /// @}

  /// The mapping may hold pages with errors.
  [[nodiscard]] Result<ForeignPages> map(std::span<const Gfn> pages, Access access) const;
  /// @return also the errno of a page that could not be mapped
  [[nodiscard]] Result<ForeignPages> map_page(Gfn page, Access access) const;
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

/// Each page of it, for the calls that take a list.
[[nodiscard]] std::vector<Gfn> list_of(PageRange range);

/// @param name  of a domain of this host, or its number
/// @return ENOENT: there is none of that name; or what xenstore reported
[[nodiscard]] Result<Domain> find_domain(XenCalls& calls, const std::string& name);

}  // namespace snowfabric::xen
