// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <isa-l/crc64.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tbb/parallel_for.h>

#include "fabric/base/unique_fd.hpp"
#include "fabric/crc32c.hpp"
#include "memserver-dpdk/aside_memory.hpp"
#include "memserver-dpdk/progress.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kPagesPerWord = 64;
constexpr std::size_t kChunkWords = 16;  // 4 MiB: small enough to balance, large enough to amortise
constexpr std::uint64_t kMaxPages = std::numeric_limits<std::uint32_t>::max();

/// Bytes of an open file, or why it cannot be an image.
Result<std::size_t> image_size(int fd, const std::string& name) {
  struct stat st{};
  if (::fstat(fd, &st) != 0) return fail(errno, fmt::format("fstat image {}", name));
  if (S_ISDIR(st.st_mode))
    return fail(EISDIR, fmt::format("image {} is a directory: name a raw memory file", name));
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
    return fail(EINVAL, fmt::format("image {} is neither a regular file nor a block device", name));
  const off_t end = ::lseek(fd, 0, SEEK_END);  // st_size is 0 for a block device
  if (end < 0) return fail(errno, fmt::format("size of image {}", name));
  const auto nb_bytes = static_cast<std::uint64_t>(end);
  if (nb_bytes == 0) return fail(EINVAL, fmt::format("image {} is empty", name));
  if (nb_bytes % kPageSize != 0)
    return fail(EINVAL,
                fmt::format("image {} has {} bytes, not a multiple of {}: raw memory needed", name,
                            nb_bytes, kPageSize));
  if (nb_bytes / kPageSize > kMaxPages)
    return fail(EFBIG, fmt::format("image {} has {} pages, more than {}", name,
                                   nb_bytes / kPageSize, kMaxPages));
  return nb_bytes;
}

alignas(64) constexpr std::array<std::byte, kPageSize> kZeroPage{};

bool all_zero(std::span<const std::byte, kPageSize> page) noexcept {
  // libc's memcmp stops early and is vectorised: 41 ns a cached zero page, a loop of ORs 159 ns
  return std::memcmp(page.data(), kZeroPage.data(), kPageSize) == 0;
}

}  // namespace

FileMapping::FileMapping(FileMapping&& from) noexcept : bytes_{std::exchange(from.bytes_, {})} {}

FileMapping& FileMapping::operator=(FileMapping&& from) noexcept {
  std::swap(bytes_, from.bytes_);
  return *this;
}

FileMapping::~FileMapping() {
  // munmap takes a pointer to non-const and does not write through it
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

Result<FileMapping> FileMapping::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO by mistake must fail below, not wait for its writer
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (!fd) return fail(errno, fmt::format("open image {}", path.string()));
  const Result<std::size_t> nb_bytes = image_size(fd.get(), path.string());
  if (!nb_bytes) return std::unexpected(nb_bytes.error());
  void* base = ::mmap(nullptr, *nb_bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED)
    return fail(errno, fmt::format("mmap image {}, {} bytes", path.string(), *nb_bytes));
  ::madvise(base, *nb_bytes, MADV_DONTDUMP);  // a core is for others' eyes than a guest's memory
  return FileMapping{std::span{static_cast<const std::byte*>(base), *nb_bytes}};
}

Result<Image> Image::open(const std::filesystem::path& path, const ImageOptions& options) {
  if (options.image_id == 0) return fail(EINVAL, "image id 0 means none: choose another");
  Result<FileMapping> mapping = FileMapping::open(path);
  if (!mapping) return std::unexpected(mapping.error());
  try {
    Image image{std::move(*mapping)};
    image.live_ = options.live;
    const std::uint64_t nb_in_file = image.bytes().size() / kPageSize;
    if (options.nb_pages.value_or(nb_in_file) > nb_in_file)
      return fail(EINVAL, fmt::format("image {} has {} pages alone", path.string(), nb_in_file));
    image.crcs_.resize(options.nb_pages.value_or(nb_in_file));
    if (options.hash_pages) image.hashes_.resize(image.nb_pages());
    image.zero_words_.resize((image.crcs_.size() + kPagesPerWord - 1) / kPagesPerWord);
    for (const PageRange& pages : options.zeros)
      if (!image.mark_zero(pages))
        return fail(EINVAL, fmt::format("zero pages behind the end of image {}", path.string()));
    std::optional<Progress> progress;
    if (options.progress_fd)
      progress.emplace(fmt::format("scan {}", path.filename().string()),
                       image.nb_pages() * kPageSize, *options.progress_fd);
    const bool readable = image.scan(progress ? &*progress : nullptr, options.stop);
    if (options.stop != nullptr && *options.stop)
      return fail(ECANCELED, fmt::format("the scan of {} was stopped", path.string()));
    if (!readable)
      return fail(EIO, fmt::format("read image {}: its disk fails or it shrinks", path.string()));
    image.epoch_ = options.epoch;
    image.space_ = options.space;
    image.image_id_ = options.image_id ? *options.image_id : image.content_id();
    return image;
  } catch (const std::bad_alloc&) {
    return fail(ENOMEM, fmt::format("page tables of image {}", path.string()));
  }
}

bool Image::mark_zero(PageRange pages) noexcept {
  if (pages.first.value > nb_pages() || pages.nb_pages > nb_pages() - pages.first.value)
    return false;
  for (std::uint64_t page = pages.first.value; page < pages.first.value + pages.nb_pages; ++page)
    zero_words_[page / kPagesPerWord] |= std::uint64_t{1} << (page % kPagesPerWord);
  return true;
}

bool Image::scan(Progress* progress, const std::atomic<bool>* stop) {
  std::atomic<bool> unreadable = false;
  // A chunk is whole words of zero_words_, so no two threads write one word.
  tbb::parallel_for(
      tbb::blocked_range<std::size_t>{0, zero_words_.size(), kChunkWords},
      [&](const tbb::blocked_range<std::size_t>& words) {
        if (unreadable.load(std::memory_order_relaxed)) return;
        if (stop != nullptr && stop->load(std::memory_order_relaxed)) return;
        if (!scan_words(words.begin(), words.end()))
          unreadable = true;
        else if (progress != nullptr)
          progress->add((std::min(words.end() * kPagesPerWord, crcs_.size()) -
                         words.begin() * kPagesPerWord) *
                        kPageSize);
      },
      tbb::simple_partitioner{});
  for (const std::uint64_t word : zero_words_)
    nb_zero_pages_ += static_cast<std::uint64_t>(std::popcount(word));
  return !unreadable;
}

bool Image::scan_words(std::size_t begin, std::size_t end) noexcept {
  const std::size_t first = begin * kPagesPerWord;
  const std::size_t last = std::min(end * kPagesPerWord, crcs_.size());
  // An error here where the touches below would raise SIGBUS. Kernels before 5.14 say EINVAL.
  auto* base = const_cast<std::byte*>(bytes().data()) + first * kPageSize;
  if (!is_live() && ::madvise(base, (last - first) * kPageSize, MADV_POPULATE_READ) != 0 &&
      errno != EINVAL)
    return false;
  static const std::uint32_t kZeroCrc = crc32c(kZeroPage);
  static const Hash kZeroHash = hash_page(kZeroPage, 0);
  std::array<std::byte, kPageSize> room;
  for (std::size_t i = first; i < last; ++i) {
    crcs_[i] = kZeroCrc;
    if (!hashes_.empty()) hashes_[i] = kZeroHash;
    if (is_zero(Gfn{i})) continue;  // known before
    const auto page = look_at(Gfn{i}, room);
    const bool zero = all_zero(page);
    if (!zero) crcs_[i] = crc32c(page);
    if (!zero && !hashes_.empty()) hashes_[i] = hash_page(page, 0);
    zero_words_[i / kPagesPerWord] |= std::uint64_t{zero} << (i % kPagesPerWord);
  }
  return true;
}

bool Image::lives(Gfn gfn) const noexcept {
  return live_ != nullptr && gfn.value < live_->nb_pages();
}

std::uint64_t Image::nb_aside_pages() const noexcept {
  return live_ == nullptr ? 0 : live_->nb_copies();
}

void Image::copy(Gfn gfn, std::size_t offset, std::span<std::byte> out) const noexcept {
  if (is_zero(gfn))
    std::ranges::fill(out, std::byte{0});  // one that was left out is not zero where it lies
  else if (lives(gfn))
    live_->copy(gfn, offset, out);
  else
    std::memcpy(out.data(), bytes().data() + gfn.value * kPageSize + offset, out.size());
}

/// A page where it is, or copied into `room`.
std::span<const std::byte, kPageSize> Image::look_at(
    Gfn gfn, std::span<std::byte, kPageSize> room) const noexcept {
  if (!lives(gfn))
    return std::span<const std::byte, kPageSize>{bytes().data() + gfn.value * kPageSize, kPageSize};
  live_->copy(gfn, 0, room);
  return room;
}

/// CRC-64 over the page checksums, begun with the size. Not a defence against forgery: it tells
/// apart images that happen to be different.
std::uint64_t Image::content_id() const noexcept {
  const std::uint64_t id =
      crc64_ecma_refl(nb_pages(), reinterpret_cast<const unsigned char*>(crcs_.data()),
                      crcs_.size() * sizeof crcs_[0]);
  return id == 0 ? 1 : id;  // 0 means "no image"
}

void install_sigbus_handler() noexcept {
  struct sigaction action{};
  action.sa_handler = [](int) {
    // only async-signal-safe calls
    constexpr std::string_view kMessage =
        "SIGBUS: a mapped image was truncated or its disk cannot be read, or the host ran out of "
        "hugepages. Serve an intact file that nothing writes.\n";
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, kMessage.data(), kMessage.size());
    ::_exit(kSigbusExitStatus);
  };
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace snowfabric
