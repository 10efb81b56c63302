// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/checkpoint.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <sys/stat.h>

#include "fabric/base/endian.hpp"
#include "fabric/base/new_file.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/crc32c.hpp"
#include "memserver-dpdk/holes.hpp"
#include "memserver-dpdk/progress.hpp"

namespace snowfabric {
namespace {

constexpr std::array kMagic{'S', 'F', 'C', 'H', 'K', 'P', 'T', '1'};
constexpr std::uint64_t kPagesAtOnce = 256;         // 1 MiB a write
constexpr std::uint64_t kSyncBytes = 64ULL << 20U;  // so that no sync at the end takes long

struct Trailer {
  std::array<char, 8> magic;  //  0
  Be64 image_id;              //  8
  Be64 nb_pages;              // 16
  Be32 epoch;                 // 24
  Be32 table_crc32c;          // 28
  Be32 crc32c;                // 32  of the bytes before
};
static_assert(sizeof(Trailer) == 36 && alignof(Trailer) == 1);
constexpr std::size_t kCheckedBytes = offsetof(Trailer, crc32c);

std::uint32_t check_of(const Trailer& trailer) {
  return crc32c(std::as_bytes(std::span{&trailer, 1}).first(kCheckedBytes));
}

/// Of the table, in pieces: it may be longer than crc32c() takes.
std::uint32_t check_of(std::span<const std::byte> table) {
  std::uint32_t sum = 0;
  for (std::size_t at = 0; at < table.size(); at += kSyncBytes)
    sum = crc32c(table.subspan(at, std::min<std::size_t>(kSyncBytes, table.size() - at)), sum);
  return sum;
}

/// Bytes of the table of checksums, padded to pages.
std::uint64_t table_bytes(std::uint64_t nb_pages) {
  return (nb_pages * sizeof(Be32) + kPageSize - 1) / kPageSize * kPageSize;
}

/// Pages that are not zero, from the first on. @return EBADMSG: one is not what it was when frozen
Result<std::uint64_t> copy_run(const Image& image, std::uint64_t first, std::span<std::byte> room) {
  std::uint64_t page = first;
  for (; page < image.nb_pages() && page - first < kPagesAtOnce && !image.is_zero(Gfn{page});
       ++page) {
    const auto place = room.subspan((page - first) * kPageSize, kPageSize);
    image.copy(Gfn{page}, 0, place);
    if (crc32c(place) != image.crc(Gfn{page}))
      return fail(EBADMSG, fmt::format("page {} has changed since it was frozen", page));
  }
  return page - first;
}

Result<void> write_pages(const Image& image, NewFile& file, Progress* progress,
                         const std::atomic<bool>& stop) {
  std::vector<std::byte> room(kPagesAtOnce * kPageSize);
  std::uint64_t unsynced_bytes = 0;
  for (std::uint64_t page = 0; page < image.nb_pages() && !stop;) {
    std::uint64_t nb_zero = 0;
    while (page + nb_zero < image.nb_pages() && image.is_zero(Gfn{page + nb_zero})) ++nb_zero;
    if (auto ok = file.skip(nb_zero * kPageSize); !ok) return ok;
    const auto nb_data = copy_run(image, page + nb_zero, room);
    if (!nb_data) return std::unexpected(nb_data.error());
    const std::uint64_t nb_bytes = *nb_data * kPageSize;
    if (auto ok = file.write(std::span{room}.first(nb_bytes)); !ok) return ok;
    if (progress != nullptr) progress->add(nb_zero * kPageSize + nb_bytes);
    page += nb_zero + *nb_data;
    unsynced_bytes += nb_bytes;
    if (unsynced_bytes < kSyncBytes) continue;
    if (auto ok = file.sync(); !ok) return ok;
    unsynced_bytes = 0;
  }
  return {};
}

Result<void> write_end(const Image& image, NewFile& file) {
  std::vector<Be32> table(image.crcs().begin(), image.crcs().end());
  const auto bytes = std::as_bytes(std::span{table});
  if (auto ok = file.write(bytes); !ok) return ok;
  if (auto ok = file.skip(table_bytes(image.nb_pages()) - bytes.size()); !ok) return ok;
  Trailer trailer{.magic = kMagic,
                  .image_id = image.image_id(),
                  .nb_pages = image.nb_pages(),
                  .epoch = image.epoch(),
                  .table_crc32c = check_of(bytes),
                  .crc32c = 0U};
  trailer.crc32c = check_of(trailer);
  if (auto ok = file.write(std::as_bytes(std::span{&trailer, 1})); !ok) return ok;
  return file.skip(kPageSize - sizeof trailer);
}

/// What stands behind the pages.
struct End {
  Trailer trailer{};
  std::span<const std::byte> table;
};

Result<End> end_of(std::span<const std::byte> file, const std::string& path) {
  const auto bad = [&](const char* why) {
    return fail(EBADMSG, fmt::format("checkpoint {}: {}", path, why));
  };
  End end;
  std::memcpy(&end.trailer, file.last<kPageSize>().data(), sizeof end.trailer);
  if (end.trailer.magic != kMagic)
    return bad("it is none, was truncated, or is of another version");
  if (end.trailer.crc32c.host() != check_of(end.trailer)) return bad("its trailer is damaged");
  const std::uint64_t nb_pages = end.trailer.nb_pages.host();
  if (nb_pages == 0 || nb_pages > file.size() / kPageSize ||
      file.size() != nb_pages * kPageSize + table_bytes(nb_pages) + kPageSize)
    return bad("it has not the size that it says");
  end.table = file.subspan(nb_pages * kPageSize, nb_pages * sizeof(Be32));
  if (end.trailer.table_crc32c.host() != check_of(end.table))
    return bad("its table of checksums is damaged");
  return end;
}

}  // namespace

Result<void> may_be_checkpoint(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (!fd && errno == ENOENT) return {};
  if (!fd) return fail(errno, fmt::format("open {}", path));
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail(errno, fmt::format("fstat {}", path));
  std::array<char, kMagic.size()> magic{};
  if (S_ISREG(st.st_mode) && st.st_size >= static_cast<off_t>(kPageSize) &&
      ::pread(fd.get(), magic.data(), magic.size(), st.st_size - static_cast<off_t>(kPageSize)) ==
          static_cast<ssize_t>(magic.size()) &&
      magic == kMagic)
    return {};
  return fail(EEXIST,
              fmt::format("{} is there, and is no checkpoint: it is not written over", path));
}

Result<void> write_checkpoint(const Image& image, const std::string& path,
                              std::optional<int> progress_fd, const std::atomic<bool>& stop) try {
  if (auto ok = may_be_checkpoint(path); !ok) return ok;
  auto file = NewFile::create(path);
  if (!file) return std::unexpected(file.error());
  std::optional<Progress> progress;
  if (progress_fd)
    progress.emplace(fmt::format("checkpoint {}", path), image.nb_pages() * kPageSize,
                     *progress_fd);
  if (auto ok = write_pages(image, *file, progress ? &*progress : nullptr, stop); !ok) return ok;
  if (stop) return fail(ECANCELED, fmt::format("checkpoint {} was stopped", path));
  if (auto ok = write_end(image, *file); !ok) return ok;
  return file->finish();
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, fmt::format("checkpoint {}", path));
}

Result<Image> open_checkpoint(const std::string& path, ImageOptions options) {
  const auto file = FileMapping::open(path);
  if (!file) return std::unexpected(file.error());
  const auto end = end_of(file->bytes(), path);
  if (!end) return std::unexpected(end.error());
  options.image_id = end->trailer.image_id.host();
  options.epoch = end->trailer.epoch.host();
  options.nb_pages = end->trailer.nb_pages.host();
  if (options.image_id == 0) return fail(EBADMSG, fmt::format("checkpoint {}: image id 0", path));
  if (const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
      fd)  // the table holds them to it
    append_holes(fd.get(), 0, *options.nb_pages * kPageSize, Gfn{0}, options.zeros);
  auto image = Image::open(path, options);
  if (!image) return image;
  for (std::uint64_t page = 0; page < image->nb_pages(); ++page) {
    Be32 frozen;
    std::memcpy(&frozen, end->table.data() + page * sizeof frozen, sizeof frozen);
    if (frozen.host() != image->crc(Gfn{page}))
      return fail(EBADMSG,
                  fmt::format("checkpoint {}: page {} is not what was frozen", path, page));
  }
  return image;
}

}  // namespace snowfabric
