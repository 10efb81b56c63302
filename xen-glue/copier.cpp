// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/copier.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <isa-l/mem_routines.h>
#include <sys/mman.h>

namespace snowfabric::xen {

Result<CopyTarget> CopyTarget::make(std::uint64_t nb_pages) {
  CopyTarget target;
  target.fd_ = UniqueFd{memfd_create("frozen domain", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  const std::size_t nb_bytes = nb_pages * kPageSize;
  if (!target.fd_ || ftruncate(target.fd_.get(), static_cast<off_t>(nb_bytes)) != 0)
    return fail(errno, fmt::format("memfd of {} bytes", nb_bytes));
  void* bytes = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, target.fd_.get(), 0);
  if (bytes == MAP_FAILED) return fail(errno, fmt::format("mmap of {} bytes", nb_bytes));
  target.bytes_ = {static_cast<std::byte*>(bytes), nb_bytes};
  return target;
}

void CopyTarget::unmap() noexcept {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  bytes_ = {};
}

Result<UniqueFd> CopyTarget::seal() && {
  unmap();
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return fail(errno, "seal of a frozen domain");
  return std::move(fd_);
}

Copier::Copier(Domain domain, std::span<std::byte> out)
    : domain_{domain},
      out_{out},
      dirty_((out.size() / kPageSize + 63) / 64, ~std::uint64_t{0}),
      holds_(out.size() / kPageSize) {}

Copier::~Copier() {
  if (logs_) domain_.calls().log_dirty(domain_.id(), false);
}

Result<void> Copier::begin() {
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
  const int errnum = domain_.calls().take_dirty(domain_.id(), dirty_);
  if (const auto ok = domain_.checked(errnum, "look what was written"); !ok)
    return std::unexpected(ok.error());
  return dirty_pages().size();
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
    if ((dirty_[i / 64] >> (i % 64) & 1U) != 0) pages.push_back({i});
  return pages;
}

Result<void> Copier::copy_burst(std::span<const Gfn> pages) {
  const auto mapped = domain_.map(pages, Access::kRead);
  if (!mapped) return std::unexpected(mapped.error());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const int errnum = mapped->error(i);
    if (errnum != 0 && !is_missing(errnum)) return domain_.checked(errnum, "map", pages[i]);
    holds_[pages[i].value] = errnum == 0 && copy_page(pages[i], mapped->page(i));
  }
  return {};
}

/// @return false: all zero, and then it takes no memory here
bool Copier::copy_page(Gfn page, std::span<std::byte, kPageSize> bytes) const noexcept {
  if (isal_zero_detect(bytes.data(), kPageSize) == 0) return false;
  std::memcpy(out_.data() + page.value * kPageSize, bytes.data(), kPageSize);
  return true;
}

bool Copier::was_free(Gfn page) const noexcept {
  return !free_.empty() && (free_[page.value / 64] >> (page.value % 64) & 1U) != 0;
}

std::pair<std::uint64_t, std::uint64_t> Copier::nb_free_and_avoided() const {
  std::uint64_t nb_free = 0, nb_avoided = 0;
  for (std::uint64_t i = 0; i < holds_.size(); ++i) {
    if (!was_free(Gfn{i})) continue;
    ++nb_free;
    nb_avoided += holds_[i] ? 0 : 1;
  }
  return {nb_free, nb_avoided};
}

std::vector<PageRange> Copier::zeros() const {
  std::vector<PageRange> ranges;
  for (std::uint64_t i = 0; i < holds_.size(); ++i) {
    if (holds_[i]) continue;
    if (i == 0 || holds_[i - 1]) ranges.push_back({Gfn{i}, 0});
    ++ranges.back().nb_pages;
  }
  return ranges;
}

}  // namespace snowfabric::xen
