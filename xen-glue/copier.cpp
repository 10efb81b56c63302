// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/copier.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <isa-l/mem_routines.h>
#include <sys/mman.h>

#include "fabric/base/page_ranges.hpp"

namespace snowfabric::xen {

Result<UniqueFd> make_copy(std::uint64_t nb_pages) {
  UniqueFd fd{memfd_create("frozen domain", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  const std::uint64_t nb_bytes = nb_pages * kPageSize;
  if (!fd || ftruncate(fd.get(), static_cast<off_t>(nb_bytes)) != 0)
    return fail(errno, fmt::format("memfd of {} bytes", nb_bytes));
  return fd;
}

Result<void> seal_copy(int fd) {
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return fail(errno, "seal of a frozen domain");
  return {};
}

Copier::Copier(Domain domain, int fd, std::uint64_t nb_pages)
    : domain_{domain}, fd_{fd}, dirty_((nb_pages + 63) / 64, ~std::uint64_t{0}), holds_(nb_pages) {}

Copier::~Copier() { end(); }

void Copier::end() noexcept {
  if (std::exchange(logs_, false)) domain_.calls().log_dirty(domain_.id(), false);
}

Result<void> Copier::begin() {
  const auto info = domain_.info();
  if (!info) return std::unexpected(info.error());
  nb_pages_ = info->nb_pages;
  const auto ok =
      domain_.checked(domain_.calls().log_dirty(domain_.id(), true), "log what is written");
  logs_ = ok.has_value();
  return ok;
}

void Copier::skip(const FreeWords& free) {
  free_ = free;
  for (std::size_t i = 0; i < dirty_.size(); ++i) dirty_[i] &= ~free[i];
}

Result<std::size_t> Copier::look() {
  // Before the other: writes to a page that comes between the two are noted by nobody.
  const auto info = domain_.info();
  if (!info) return std::unexpected(info.error());
  const int errnum = domain_.calls().take_dirty(domain_.id(), dirty_);
  if (const auto ok = domain_.checked(errnum, "look what was written"); !ok)
    return std::unexpected(ok.error());
  if (std::exchange(nb_pages_, info->nb_pages) != info->nb_pages)
    std::ranges::fill(dirty_, ~std::uint64_t{0});
  return dirty_pages().size();
}

FreeWords Copier::still_free() const {
  FreeWords free = free_;
  for (std::size_t i = 0; i < free.size(); ++i) free[i] &= ~dirty_[i];
  return free;
}

Result<void> Copier::copy(const FreezeOptions& options) {
  const std::vector<Gfn> pages = dirty_pages();
  for (std::span<const Gfn> rest{pages}; !rest.empty();) {
    if (options.stop != nullptr && *options.stop) return fail(ECANCELED, "a freeze");
    const auto burst = rest.first(std::min(rest.size(), kMapBurstPages));
    if (auto ok = copy_burst(burst); !ok) return ok;
    rest = rest.subspan(burst.size());
    if (options.progress) options.progress(holds_.size(), pages.size() - rest.size());
  }
  return {};
}

std::vector<Gfn> Copier::dirty_pages() const {
  std::vector<Gfn> pages;
  for (std::uint64_t i = 0; i < holds_.size(); ++i)
    if (is_dirty(Gfn{i})) pages.push_back({i});
  return pages;
}

Result<void> Copier::copy_burst(std::span<const Gfn> pages) {
  const auto mapped = domain_.map(pages, Access::kRead);
  if (!mapped) return std::unexpected(mapped.error());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const int errnum = mapped->error(i);
    if (errnum != 0 && !is_missing(errnum)) return domain_.checked(errnum, "map", pages[i]);
    // One that is all zero takes no memory here.
    holds_[pages[i].value] =
        errnum == 0 && isal_zero_detect(mapped->page(i).data(), kPageSize) != 0;
  }
  for (std::size_t i = 0; i < pages.size();) {
    const std::size_t nb_run = nb_in_run(pages.subspan(i));
    if (nb_run > 0) {
      const std::span bytes{mapped->page(i).data(), nb_run * kPageSize};
      if (auto ok = write_run(pages[i], bytes); !ok) return ok;
    }
    i += std::max<std::size_t>(nb_run, 1);
  }
  return {};
}

/// @return how many of the first ones lie one behind the other, and are to be held
std::size_t Copier::nb_in_run(std::span<const Gfn> pages) const noexcept {
  std::size_t nb = 0;
  while (nb < pages.size() && pages[nb].value == pages[0].value + nb && holds_[pages[nb].value])
    ++nb;
  return nb;
}

/// By write(2): to fault in a mapping of the copy, page by page, is what a PV dom0 is slow at.
Result<void> Copier::write_run(Gfn first, std::span<const std::byte> bytes) const {
  for (std::uint64_t at = first.value * kPageSize; !bytes.empty();) {
    const ssize_t nb_bytes = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (nb_bytes <= 0) return fail(nb_bytes < 0 ? errno : EIO, "write a frozen domain's memory");
    at += static_cast<std::uint64_t>(nb_bytes);
    bytes = bytes.subspan(static_cast<std::size_t>(nb_bytes));
  }
  return {};
}

bool Copier::was_free(Gfn page) const noexcept {
  return !free_.empty() && (free_[page.value / 64] >> (page.value % 64) & 1U) != 0;
}

bool Copier::is_dirty(Gfn page) const noexcept {
  return (dirty_[page.value / 64] >> (page.value % 64) & 1U) != 0;
}

/// Pages that were skipped, and of them those that `counts` holds for.
template <class Counts>
std::pair<std::uint64_t, std::uint64_t> Copier::nb_free_and(Counts&& counts) const {
  std::uint64_t nb_free = 0, nb_counted = 0;
  for (Gfn page{0}; page.value < holds_.size(); ++page.value) {
    if (!was_free(page)) continue;
    ++nb_free;
    nb_counted += counts(page) ? 1 : 0;
  }
  return {nb_free, nb_counted};
}

std::pair<std::uint64_t, std::uint64_t> Copier::nb_free_and_avoided() const {
  return nb_free_and([this](Gfn page) { return !holds_[page.value]; });
}

std::pair<std::uint64_t, std::uint64_t> Copier::nb_free_and_still_free() const {
  return nb_free_and([this](Gfn page) { return !is_dirty(page); });
}

std::vector<PageRange> Copier::zeros() const {
  std::vector<PageRange> ranges;
  for (std::uint64_t i = 0; i < holds_.size(); ++i)
    if (!holds_[i]) append(Gfn{i}, ranges);
  return ranges;
}

}  // namespace snowfabric::xen
