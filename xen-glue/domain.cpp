// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/domain.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

namespace snowfabric::xen {
namespace {

/// No frame there; of a frame that was never populated, Xen says so in two ways.
bool is_missing(int errnum) noexcept { return errnum == EINVAL || errnum == ENOENT; }

}  // namespace

std::string to_string(DomId domain) {
  return fmt::format("domain {}", static_cast<std::uint16_t>(domain));
}

Result<void> Domain::checked(int errnum, const char* call) const {
  if (errnum == 0) return {};
  return fail(errnum, fmt::format("{} of {}", call, to_string(id_)));
}

Result<void> Domain::checked(int errnum, const char* call, Gfn page) const {
  if (errnum == 0) return {};
  return fail(errnum, fmt::format("{} of {}, gfn {:#x}", call, to_string(id_), page.value));
}

Result<DomainInfo> Domain::info() const {
  DomainInfo info;
  if (const auto ok = checked(calls_->info(id_, info), "info"); !ok)
    return std::unexpected(ok.error());
  return info;
}

Result<void> Domain::pause() const { return checked(calls_->pause(id_), "pause"); }

Result<void> Domain::unpause() const { return checked(calls_->unpause(id_), "unpause"); }

Result<void> Domain::resume() const { return checked(calls_->resume(id_), "resume"); }

Result<std::vector<std::byte>> Domain::context() const {
  std::vector<std::byte> context;
  if (const auto ok = checked(calls_->get_context(id_, context), "get HVM context"); !ok)
    return std::unexpected(ok.error());
  return context;
}

Result<void> Domain::set_context(std::span<const std::byte> context) const {
  return checked(calls_->set_context(id_, context), "set HVM context");
}

Result<TscInfo> Domain::tsc() const {
  TscInfo tsc;
  if (const auto ok = checked(calls_->get_tsc(id_, tsc), "get TSC"); !ok)
    return std::unexpected(ok.error());
  return tsc;
}

Result<void> Domain::set_tsc(const TscInfo& tsc) const {
  return checked(calls_->set_tsc(id_, tsc), "set TSC");
}

Result<void> Domain::populate(std::span<const Gfn> pages) const {
  return checked(calls_->populate(id_, pages), "populate", pages.front());
}

Result<ForeignPages> Domain::map(std::span<const Gfn> pages, Access access) const {
  std::vector<int> errors(pages.size());
  std::byte* first = nullptr;
  if (const auto ok = checked(calls_->map(id_, access, pages, errors, first), "map", pages.front());
      !ok)
    return std::unexpected(ok.error());
  return ForeignPages{*calls_, first, std::move(errors)};
}

Result<ForeignPages> Domain::map_page(Gfn page, Access access) const {
  auto mapped = map({&page, 1}, access);
  if (!mapped) return mapped;
  if (const auto ok = checked(mapped->error(0), "map", page); !ok)
    return std::unexpected(ok.error());
  return mapped;
}

Result<void> Domain::read(std::span<const Gfn> pages, std::span<std::byte> out,
                          std::vector<Gfn>& missing) const {
  while (!pages.empty()) {
    const auto burst = pages.first(std::min(pages.size(), kMapBurstPages));
    const auto mapped = map(burst, Access::kRead);
    if (!mapped) return std::unexpected(mapped.error());
    for (std::size_t i = 0; i < burst.size(); ++i) {
      if (mapped->error(i) == 0)
        std::memcpy(out.data() + i * kPageSize, mapped->page(i).data(), kPageSize);
      else if (is_missing(mapped->error(i)))
        missing.push_back(burst[i]);
      else
        return checked(mapped->error(i), "map", burst[i]);
    }
    pages = pages.subspan(burst.size());
    out = out.subspan(burst.size() * kPageSize);
  }
  return {};
}

}  // namespace snowfabric::xen
