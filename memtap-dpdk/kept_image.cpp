// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/kept_image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "descriptor/descriptor.hpp"
#include "memtap-dpdk/uffd_ioctl.hpp"

namespace snowfabric {
namespace {

/// A userfaultfd with the whole mapping registered for missing pages: only to fill it, for nobody
/// touches a page through this mapping that is not there, least of all the kernel. So it takes no
/// capability.
Result<UniqueFd> registered(std::span<std::byte> memory) {
  UniqueFd uffd{
      static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY))};
  if (!uffd) return fail(errno, "userfaultfd");
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  if (ioctl(uffd.get(), UFFDIO_API, &api) != 0) return fail(errno, "UFFDIO_API");
  uffdio_register range{};
  range.range = {reinterpret_cast<std::uintptr_t>(memory.data()), memory.size()};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (ioctl(uffd.get(), UFFDIO_REGISTER, &range) != 0)
    return fail(errno, fmt::format("register {} bytes of kept image", memory.size()));
  return uffd;
}

/// Clones map the file privately; none may change what the others read. Our mapping is older than
/// the seal and stays writable.
Result<void> seal(int file) {
  constexpr int kSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (fcntl(file, F_ADD_SEALS, kSeals) == 0) return {};
  return fail(errno, "seal the kept image");
}

}  // namespace

std::string image_name(const ImageGeometry& image) {
  return image_name(image.image_id, image.epoch);
}

Result<std::unique_ptr<KeptImage>> KeptImage::create(const ImageGeometry& image) {
  const std::string name = "snowfabric-image-" + image_name(image);
  UniqueFd file{memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  const std::size_t nb_bytes = image.nb_pages * kPageSize;
  struct stat st{};
  if (!file || ftruncate(file.get(), static_cast<off_t>(nb_bytes)) != 0 ||
      fstat(file.get(), &st) != 0)
    return fail(errno, fmt::format("make a memory file of {} bytes", nb_bytes));
  void* base = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (base == MAP_FAILED) return fail(errno, fmt::format("mmap {} bytes of kept image", nb_bytes));
  const std::span memory{static_cast<std::byte*>(base), nb_bytes};
  madvise(base, nb_bytes, MADV_NOHUGEPAGE);  // what is kept counts by the page
  madvise(base, nb_bytes, MADV_DONTDUMP);    // a core is for others' eyes than a guest's memory
  auto uffd = registered(memory);
  auto sealed = seal(file.get());
  if (!uffd || !sealed) {
    munmap(base, nb_bytes);
    return std::unexpected(uffd ? sealed.error() : uffd.error());
  }
  return std::unique_ptr<KeptImage>{
      new KeptImage{std::move(file), std::move(*uffd), memory, st.st_ino}};
}

KeptImage::KeptImage(UniqueFd file, UniqueFd uffd, std::span<std::byte> memory, std::uint64_t inode)
    : file_{std::move(file)},
      uffd_{std::move(uffd)},
      memory_{memory},
      kept_((nb_pages() + 63) / 64),
      zero_(kept_.size()),
      inode_{inode} {}

KeptImage::~KeptImage() {
  if (!link_.empty()) unlink(link_.c_str());
  munmap(memory_.data(), memory_.size());
}

/// A memory file has no name; clones of the same user open it through this process.
Result<void> KeptImage::publish(const std::string& link) {
  struct stat st{};
  if (lstat(link.c_str(), &st) == 0) {  // of a memtap that was killed
    if (!S_ISLNK(st.st_mode)) return fail(EEXIST, fmt::format("{} is no symbolic link", link));
    if (unlink(link.c_str()) != 0) return fail(errno, fmt::format("unlink {}", link));
  }
  if (symlink(fmt::format("/proc/{}/fd/{}", getpid(), file()).c_str(), link.c_str()) != 0)
    return fail(errno, fmt::format("symlink {}", link));
  link_ = link;
  return {};
}

std::uint64_t KeptImage::put(Gfn first, std::span<const std::byte> pages) noexcept {
  const std::uint64_t end =
      std::min<std::uint64_t>(first.value + pages.size() / kPageSize, nb_pages());
  std::uint64_t nb_failed = 0;
  for (std::uint64_t at = first.value; at < end;) {
    std::uint64_t to = at;
    while (to < end && !has(Gfn{to})) ++to;
    if (to == at) {
      ++at;
      continue;
    }
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data() + at * kPageSize);
    const std::byte* bytes = pages.data() + (at - first.value) * kPageSize;
    uffd::Filled done = uffd::copy(uffd_.get(), address, bytes, to - at);
    if (done.errnum == EEXIST) {  // zeros, by a stranger's touch: see nb_overwritten()
      std::memcpy(memory_.data() + at * kPageSize, bytes, kPageSize);
      done.nb_pages = 1;
      ++nb_overwritten_;
    }
    for (std::uint64_t i = 0; i < done.nb_pages; ++i) set(kept_, Gfn{at + i});
    nb_kept_ += done.nb_pages;
    at += done.nb_pages;
    if (done.nb_pages > 0) continue;
    ++nb_failed;
    ++at;
  }
  return nb_failed;
}

void KeptImage::put_zeros(PageRange pages) noexcept {
  const std::uint64_t end = std::min<std::uint64_t>(pages.first.value + pages.nb_pages, nb_pages());
  for (std::uint64_t at = pages.first.value; at < end; ++at) set(zero_, Gfn{at});
}

void KeptImage::unmap_pages() const noexcept {
  constexpr std::size_t kStep = std::size_t{64} << 20U;  // a call; others get in between
  for (std::size_t at = 0; at < memory_.size(); at += kStep)
    madvise(memory_.data() + at, std::min(kStep, memory_.size() - at), MADV_DONTNEED);
}

PageRange KeptImage::zero_run(Gfn page) const noexcept {
  std::uint64_t first = page.value, end = page.value + 1;
  while (first > 0 && page.value - first < kMaxZeroRun && is_zero(Gfn{first - 1})) --first;
  while (end < nb_pages() && end - page.value <= kMaxZeroRun && is_zero(Gfn{end})) ++end;
  return {Gfn{first}, static_cast<std::uint32_t>(end - first)};
}

}  // namespace snowfabric
