// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/domain.hpp"

#include <cerrno>
#include <limits>

#include <fmt/format.h>

#include "fabric/base/parse_number.hpp"

namespace snowfabric::xen {
namespace {

std::string path_of(DomId domain, std::string_view node) {
  return fmt::format("/local/domain/{}/{}", static_cast<std::uint16_t>(domain), node);
}

Result<std::uint16_t> number_of(std::string_view text) {
  const auto number = parse_number(text, 10);
  if (!number || *number > std::numeric_limits<std::uint16_t>::max())
    return fail(EINVAL, fmt::format("{}: not the number of a domain", text));
  return static_cast<std::uint16_t>(*number);
}

}  // namespace

std::string to_string(DomId domain) {
  return fmt::format("domain {}", static_cast<std::uint16_t>(domain));
}

std::vector<Gfn> list_of(PageRange range) {
  std::vector<Gfn> pages;
  for (std::uint64_t i = 0; i < range.nb_pages; ++i) pages.push_back({range.first.value + i});
  return pages;
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

Result<std::string> Domain::store_read(std::string_view node) const {
  const std::string path = path_of(id_, node);
  std::string value;
  if (const int errnum = calls_->store_read(path, value)) return fail(errnum, "read " + path);
  return value;
}

Result<void> Domain::store_write(std::string_view node, const std::string& value) const {
  const std::string path = path_of(id_, node);
  if (const int errnum = calls_->store_write(path, value)) return fail(errnum, "write " + path);
  return {};
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

Result<Domain> find_domain(XenCalls& calls, const std::string& name) {
  if (const auto number = number_of(name)) return Domain{calls, DomId{*number}};
  constexpr const char* kAll = "/local/domain";
  std::vector<std::string> numbers;
  if (const int errnum = calls.store_list(kAll, numbers))
    return fail(errnum, fmt::format("list {}", kAll));
  for (const std::string& text : numbers) {
    const auto number = number_of(text);
    if (!number) continue;
    const Domain domain{calls, DomId{*number}};
    // xenstore keeps the name of one that was destroyed until its toolstack has cleaned up.
    const auto info = domain.info();
    if (info ? info->dying : info.error().errnum == ESRCH) continue;
    if (const auto its = domain.store_read("name"); its && *its == name) return domain;
  }
  return fail(ENOENT, fmt::format("no domain of this host is named {}", name));
}

}  // namespace snowfabric::xen
