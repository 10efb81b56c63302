// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/cow_memory.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "fabric/base/page_ranges.hpp"
#include "memserver-dpdk/holes.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kEventBurst = 32;

std::uint64_t image_pages(const std::vector<ShimRegion>& regions) {
  return (regions.back().offset + regions.back().size) / kPageSize;
}

}  // namespace

Result<std::unique_ptr<CowMemory>> CowMemory::attach(const std::string& shim_socket) {
  auto memory = take_shim_memory(shim_socket);
  if (!memory) return std::unexpected(memory.error());
  std::unique_ptr<CowMemory> cow{new CowMemory{std::move(*memory)}};
  if (auto ok = cow->map(); !ok) return std::unexpected(ok.error());
  if (auto ok = cow->start(); !ok) return std::unexpected(ok.error());
  return cow;
}

CowMemory::CowMemory(ShimMemory memory)
    : uffd_{std::move(memory.uffd)},
      stop_{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)},
      regions_{std::move(memory.regions)},
      written_(image_pages(regions_)) {}

CowMemory::~CowMemory() {
  end_thread();
  uffd_ = UniqueFd{};  // the kernel unprotects and wakes every writer
  if (!live_.empty()) munmap(live_.data(), live_.size());
}

void CowMemory::end_thread() noexcept {
  if (!std::exchange(started_, false)) return;
  eventfd_write(stop_.get(), 1);
  pthread_join(thread_, nullptr);
}

Result<void> CowMemory::map() {
  const std::size_t nb_bytes = written_.size() * kPageSize;
  void* base =
      mmap(nullptr, nb_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return fail(errno, fmt::format("reserve {} bytes of addresses for the parent's RAM", nb_bytes));
  live_ = {static_cast<std::byte*>(base), nb_bytes};
  auto pages = AsideMemory::make(live_);
  if (!pages) return std::unexpected(pages.error());
  pages_ = std::move(*pages);
  for (const ShimRegion& region : regions_)
    if (mmap(live_.data() + region.offset, region.size, PROT_READ, MAP_SHARED | MAP_FIXED,
             region.file.get(), static_cast<off_t>(region.file_offset)) == MAP_FAILED)
      return fail(errno, fmt::format("mmap {} bytes of the parent's RAM", region.size));
  madvise(live_.data(), live_.size(), MADV_DONTDUMP);  // as FileMapping
  return {};
}

Result<void> CowMemory::start() {
  if (!stop_) return fail(errno, "eventfd");
  if (const int errnum = pthread_create(&thread_, nullptr, &CowMemory::run, this); errnum != 0)
    return fail(errnum, "start the copy-on-write thread");
  started_ = true;
  pthread_setname_np(thread_, "sf-cow");
  return {};
}

// --- the parent's writes ---------------------------------------------------------------------

void* CowMemory::run(void* self) {
  static_cast<CowMemory*>(self)->serve();
  return nullptr;
}

void CowMemory::serve() {
  std::array<pollfd, 2> wait{{{uffd_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  for (;;) {
    if (poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) return;
    if (wait[1].revents != 0) return;
    std::array<uffd_msg, kEventBurst> messages;
    const ssize_t n = read(uffd_.get(), messages.data(), sizeof messages);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return;
    for (std::size_t i = 0; n > 0 && i < static_cast<std::size_t>(n) / sizeof(uffd_msg); ++i)
      if (messages[i].event == UFFD_EVENT_PAGEFAULT) on_write(messages[i].arg.pagefault.address);
    if ((wait[0].revents & (POLLERR | POLLHUP)) != 0 && n <= 0) return;  // the parent is gone
  }
}

void CowMemory::on_write(std::uint64_t address) {
  const ShimRegion* region = region_at(address);
  if (region == nullptr) return;
  const Gfn page{(region->offset + (address - region->base)) / kPageSize};
  const std::lock_guard lock{mutex_};
  if (frozen_)
    pages_->set_aside(page);
  else
    written_[page.value] = true;
  [[maybe_unused]] const auto done = protect(page, 1, false);  // fails only if the parent died
}

Result<void> CowMemory::protect(Gfn first, std::uint64_t nb_pages, bool on) {
  const ShimRegion* region = region_of(first);
  const std::uint64_t start = region->base + (first.value * kPageSize - region->offset);
  uffdio_writeprotect range{{start, nb_pages * kPageSize},
                            on ? UFFDIO_WRITEPROTECT_MODE_WP : std::uint64_t{0}};
  while (ioctl(uffd_.get(), UFFDIO_WRITEPROTECT, &range) != 0)
    if (errno != EAGAIN && errno != EINTR)
      return fail(errno, fmt::format("write-protect {} pages of the parent", nb_pages));
  return {};
}

// --- the instant -----------------------------------------------------------------------------

Result<void> CowMemory::arm() {
  for (const ShimRegion& region : regions_)
    if (auto ok = protect(Gfn{region.offset / kPageSize}, region.size / kPageSize, true); !ok)
      return ok;
  return {};
}

Result<std::uint64_t> CowMemory::freeze() {
  const std::lock_guard lock{mutex_};
  std::uint64_t nb_written = 0;
  for (std::uint64_t at = 0; at < written_.size();) {
    std::uint64_t end = at;
    const ShimRegion* region = region_of(Gfn{at});
    const std::uint64_t stop = (region->offset + region->size) / kPageSize;
    while (end < stop && written_[end]) ++end;
    if (end == at) {
      ++at;
      continue;
    }
    if (auto ok = protect(Gfn{at}, end - at, true); !ok) return std::unexpected(ok.error());
    nb_written += end - at;
    at = end;
  }
  frozen_ = true;
  return nb_written;
}

void CowMemory::leave_out(std::span<const PageRange> pages) {
  const std::lock_guard lock{mutex_};  // or the thread is about to set one aside
  for (const PageRange& range : pages) {
    const std::uint64_t end = std::min(range.first.value + range.nb_pages, nb_pages());
    for (std::uint64_t p = range.first.value; p < end; ++p) pages_->leave_out(Gfn{p});
  }
}

void CowMemory::detach(const std::function<bool(Gfn)>& is_zero) noexcept {
  for (Gfn page{0}; page.value < nb_pages(); ++page.value) {
    if (is_zero(page)) continue;
    const std::lock_guard lock{mutex_};  // for a page: the parent may wait for another
    pages_->set_aside(page);
  }
  end_thread();
  uffd_ = UniqueFd{};
  // Who copies a page at this moment may read zeros here, then sees that it was set aside. If it
  // fails the parent's RAM stays mapped.
  [[maybe_unused]] const void* let_go =
      mmap(live_.data(), live_.size(), PROT_READ,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  regions_.clear();  // with them their files
}

std::vector<PageRange> CowMemory::untouched() const {
  std::vector<PageRange> holes;
  for (const ShimRegion& region : regions_)
    append_holes(region.file.get(), region.file_offset, region.size, Gfn{region.offset / kPageSize},
                 holes);
  // One that the parent has written since the instant, and given back, was there at the instant.
  std::vector<PageRange> untouched;
  for (const PageRange& hole : holes)
    for (std::uint64_t p = hole.first.value; p < hole.first.value + hole.nb_pages; ++p)
      if (!pages_->is_aside(Gfn{p})) append(Gfn{p}, untouched);
  return untouched;
}

const ShimRegion* CowMemory::region_at(std::uint64_t address) const noexcept {
  const auto found = std::ranges::find_if(regions_, [address](const ShimRegion& region) {
    return address >= region.base && address - region.base < region.size;
  });
  return found == regions_.end() ? nullptr : &*found;
}

const ShimRegion* CowMemory::region_of(Gfn page) const noexcept {
  const auto behind =
      std::ranges::upper_bound(regions_, page.value * kPageSize, {}, &ShimRegion::offset);
  return &*std::prev(behind);
}

}  // namespace snowfabric
