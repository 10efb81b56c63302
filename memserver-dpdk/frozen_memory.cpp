// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/frozen_memory.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>

#include "memserver-dpdk/holes.hpp"
#include "memserver-dpdk/progress.hpp"

namespace snowfabric {
namespace {

/// The memory while it is written. Sealing needs that no writable mapping is left.
class Arena {
 public:
  explicit Arena(int fd) noexcept : fd_{fd} {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { unmap(); }

  Result<std::vector<std::span<std::byte>>> place(std::span<const RamBlock> blocks,
                                                  std::uint64_t nb_live_pages) {
    if (nb_live_pages != 0 && nb_live_pages != blocks.front().nb_pages)
      return fail(EINVAL,
                  fmt::format("the parent's RAM block {} has {} pages, its shim handed over "
                              "{}: is all of its RAM one shared memory backend?",
                              blocks.front().name, blocks.front().nb_pages, nb_live_pages));
    nb_bytes_ = qemu::nb_pages(blocks) * kPageSize;
    if (ftruncate(fd_, static_cast<off_t>(nb_bytes_)) != 0)
      return fail(errno, fmt::format("{} bytes for the parent's memory", nb_bytes_));
    void* base = mmap(nullptr, nb_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (base == MAP_FAILED)
      return fail(errno, fmt::format("mmap {} bytes for the parent's memory", nb_bytes_));
    madvise(base, nb_bytes_, MADV_DONTDUMP);  // as FileMapping
    base_ = static_cast<std::byte*>(base);
    std::vector<std::span<std::byte>> places;
    for (const RamBlock& block : blocks)
      places.emplace_back(base_ + block.first_page * kPageSize, block.nb_pages * kPageSize);
    if (nb_live_pages != 0) places.front() = {};
    return places;
  }
  void unmap() noexcept {
    if (base_ != nullptr) munmap(std::exchange(base_, nullptr), nb_bytes_);
  }
  [[nodiscard]] std::size_t nb_bytes() const noexcept { return nb_bytes_; }

 private:
  int fd_;
  std::byte* base_ = nullptr;
  std::size_t nb_bytes_ = 0;
};

}  // namespace

Result<FrozenMemory> FrozenMemory::take(const StreamChannel& channel, std::uint64_t nb_live_pages,
                                        std::optional<int> progress_fd) {
  UniqueFd file{memfd_create("snowfabric-frozen", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!file) return fail(errno, "memfd_create for the parent's memory");
  Arena arena{file.get()};
  std::optional<Progress> progress;
  auto state = qemu::read_stream(
      [&](std::span<std::byte> out) {
        auto nb_bytes = channel.receive(out);
        if (nb_bytes && progress) progress->add(*nb_bytes);
        return nb_bytes;
      },
      [&](std::span<const RamBlock> blocks) {
        auto places = arena.place(blocks, nb_live_pages);
        if (progress_fd) progress.emplace("freeze", arena.nb_bytes(), *progress_fd);
        return places;
      },
      kMaxImagePages);
  if (!state) return std::unexpected(state.error());
  arena.unmap();
  constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (fcntl(file.get(), F_ADD_SEALS, kSeals) != 0)
    return fail(errno, "seal the parent's frozen memory");
  return FrozenMemory{std::move(file), std::move(*state)};
}

void FrozenMemory::append_zeros(std::uint64_t nb_live_pages, std::vector<PageRange>& out) const {
  const std::uint64_t nb_pages = qemu::nb_pages(state_.blocks) - nb_live_pages;
  append_holes(file_.get(), nb_live_pages * kPageSize, nb_pages * kPageSize, Gfn{nb_live_pages},
               out);
}

std::string FrozenMemory::path() const { return fmt::format("/proc/self/fd/{}", file_.get()); }

}  // namespace snowfabric
