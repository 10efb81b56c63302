// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/aside_memory.hpp"

#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <sys/mman.h>

#include "fabric/base/secret_bytes.hpp"

namespace snowfabric {

Result<std::unique_ptr<AsideMemory>> AsideMemory::make(std::span<const std::byte> live) {
  void* base = mmap(nullptr, live.size(), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    return fail(errno,
                fmt::format("reserve {} bytes of addresses for the parent's RAM", live.size()));
  madvise(base, live.size(), MADV_NOHUGEPAGE);  // a page aside costs a page
  madvise(base, live.size(), MADV_DONTDUMP);    // as FileMapping
  return std::unique_ptr<AsideMemory>{
      new AsideMemory{live, {static_cast<std::byte*>(base), live.size()}}};
}

AsideMemory::~AsideMemory() {
  wipe_copies();
  munmap(aside_.data(), aside_.size());
}

void AsideMemory::wipe_copies() noexcept {
  for (std::size_t page = 0; page < where_.size(); ++page)
    if (where_[page].load(std::memory_order_acquire) == Where::kCopied)
      wipe(aside_.subspan(page * kPageSize, kPageSize));
}

void AsideMemory::copy(Gfn page, std::size_t offset, std::span<std::byte> out) const noexcept {
  const std::size_t at = page.value * kPageSize + offset;
  if (!is_aside(page)) {
    std::memcpy(out.data(), live_.data() + at, out.size());
    // The parent changes the page only after it was set aside: if it was not until here, these
    // bytes are the old ones.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (!is_aside(page)) return;
  }
  std::memcpy(out.data(), aside_.data() + at, out.size());
}

void AsideMemory::set_aside(Gfn page) noexcept {
  if (is_aside(page)) return;
  set_aside(page, live_.subspan(page.value * kPageSize, kPageSize));
}

void AsideMemory::set_aside(Gfn page, std::span<const std::byte> bytes) noexcept {
  std::memcpy(aside_.data() + page.value * kPageSize, bytes.data(), kPageSize);
  nb_copies_.fetch_add(1, std::memory_order_relaxed);
  where_[page.value].store(Where::kCopied, std::memory_order_release);
}

void AsideMemory::leave_out(Gfn page) noexcept {
  if (!is_aside(page)) where_[page.value].store(Where::kLeftOut, std::memory_order_release);
}

}  // namespace snowfabric
