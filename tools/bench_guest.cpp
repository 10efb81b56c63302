// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_guest.hpp"

#include <fcntl.h>
#include <rte_cycles.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <sys/mman.h>

#include "fabric/base/unique_fd.hpp"

namespace snowfabric::bench {

void Unmap::operator()(std::byte* memory) const noexcept { munmap(memory, nb_bytes); }

Result<Arena> Arena::make(std::uint64_t nb_pages) {
  const std::size_t nb_bytes = nb_pages * kPageSize;
  void* memory = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED)
    return fail(errno, fmt::format("mmap of {} MiB to receive into: fewer --pages need less",
                                   nb_bytes >> 20U));
  return Arena{std::unique_ptr<std::byte[], Unmap>{static_cast<std::byte*>(memory), {nb_bytes}}};
}

Result<Arena> Arena::in_file(const std::string& path, std::uint64_t nb_pages) {
  UniqueFd fd{open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (!fd) return fail(errno, fmt::format("open {}", path));
  const std::size_t nb_bytes = nb_pages * kPageSize;
  if (ftruncate(fd.get(), static_cast<off_t>(nb_bytes)) != 0)
    return fail(errno, fmt::format("make {} as large as the image", path));
  void* memory = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return fail(errno, fmt::format("mmap {}", path));
  return Arena{std::unique_ptr<std::byte[], Unmap>{static_cast<std::byte*>(memory), {nb_bytes}},
               std::move(fd)};
}

bool Arena::put(Gfn first, std::span<const std::byte> pages) noexcept {
  if (!file_) {
    std::memcpy(page(first), pages.data(), pages.size());
    return true;
  }
  for (std::size_t done = 0; done < pages.size();) {
    const auto at = static_cast<off_t>(first.value * kPageSize + done);
    const ssize_t n = pwrite(file_.get(), pages.data() + done, pages.size() - done, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      error_ = n < 0 ? errno : EIO;
      return false;
    }
    done += static_cast<std::size_t>(n);
  }
  return true;
}

void Arena::put_zeros(Gfn gfn) noexcept {
  if (!file_) std::memset(page(gfn), 0, kPageSize);  // a new file reads as zeros
}

void Arena::clear() noexcept { std::memset(memory_.get(), 0, nb_pages() * kPageSize); }

bool Arena::equals(const Image& image) const noexcept {
  return image.nb_pages() == nb_pages() &&
         std::memcmp(memory_.get(), image.bytes().data(), image.bytes().size()) == 0;
}

ArenaGuest::ArenaGuest(Arena& arena, std::atomic<bool>& complete)
    : arena_{arena},
      complete_{complete},
      words_(Presence::words_for(arena.nb_pages())),
      presence_{words_, arena.nb_pages()} {}

std::size_t ArenaGuest::poll_faults(std::span<Gfn> out) noexcept {
  std::size_t nb_faults = 0;
  while (nb_faults < out.size() && next_fault_ < arena_.nb_pages() &&
         next_fault_ < nb_installed_ + nb_vcpus_) {
    const Gfn page{next_fault_++};
    if (presence_.absent(page)) out[nb_faults++] = page;
  }
  counters_.faults.add(nb_faults);
  return nb_faults;
}

Install ArenaGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  // As UffdGuest does: claim a stretch, one copy, then mark it. A locked instruction a page between
  // copies would wait for each page's stores.
  const std::uint64_t nb_pages = pages.size() / kPageSize;
  std::uint64_t nb_claimed = 0;
  for (std::uint64_t begin = 0, end = 0; begin < nb_pages; begin = ++end) {
    while (end < nb_pages && presence_.claim(Gfn{first.value + end}, PageState::kClaimedByMemtap))
      ++end;
    if (!arena_.put(Gfn{first.value + begin},
                    pages.subspan(begin * kPageSize, (end - begin) * kPageSize))) {
      complete_.store(true, std::memory_order_relaxed);
      return Install::kFailed;
    }
    for (std::uint64_t i = begin; i < end; ++i) presence_.mark_present(Gfn{first.value + i});
    nb_claimed += end - begin;
  }
  counters_.install_calls.add(1);
  counters_.installed_pages.add(nb_claimed);
  counters_.skipped_pages.add(nb_pages - nb_claimed);
  note_installed(nb_claimed);
  return Install::kDone;
}

Install ArenaGuest::install_zeros(PageRange pages) noexcept {
  std::uint64_t nb_claimed = 0;
  for (std::uint64_t p = pages.first.value; p < pages.first.value + pages.nb_pages; ++p) {
    if (!presence_.claim(Gfn{p}, PageState::kClaimedByMemtap)) continue;
    arena_.put_zeros(Gfn{p});
    presence_.mark_present(Gfn{p});
    ++nb_claimed;
  }
  counters_.zero_pages.add(nb_claimed);
  note_installed(nb_claimed);
  return Install::kDone;
}

void ArenaGuest::note_installed(std::uint64_t nb_pages) noexcept {
  nb_installed_ += nb_pages;
  if (nb_installed_ != arena_.nb_pages() || completed_at_ != 0) return;
  completed_at_ = rte_rdtsc();
  complete_.store(true, std::memory_order_relaxed);
}

}  // namespace snowfabric::bench
