// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/hash_tree.hpp"

namespace snowfabric {

class AsideMemory;
class Progress;

struct ImageOptions {
  std::optional<std::uint64_t> image_id{};  ///< not 0; without it, derived from the content
  std::uint32_t epoch = 1;                  ///< of this freeze of the image
  std::uint8_t space = 0;                   ///< page space that it is
  std::optional<std::uint64_t> nb_pages{};  ///< the file's first; without it, all
  bool hash_pages = false;                  ///< for hash_tree_of()
  std::optional<int> progress_fd{};         ///< where to show the scan's progress, e.g. stderr
  /// RAM of a running parent: it is the first pages, and the file holds the others at their places.
  std::shared_ptr<const AsideMemory> live{};
  std::vector<PageRange>
      zeros{};  ///< not read: known to be zero, or read as such whatever they hold
  const std::atomic<bool>* stop = nullptr;  ///< ends the scan once it is set; borrowed
};

/// A file mapped read-only and shared; unmaps what it owns.
class FileMapping {
 public:
  /// The whole file: regular (memfd included) or a block device.
  /// @return errno of open(2) or mmap(2); EISDIR; EINVAL: another kind of file, or its size is 0 or
  ///         not a multiple of 4096; EFBIG: more than 2^32 - 1 pages
  [[nodiscard]] static Result<FileMapping> open(const std::filesystem::path& path);

  FileMapping(FileMapping&& from) noexcept;
  FileMapping& operator=(FileMapping&& from) noexcept;
  ~FileMapping();

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  explicit FileMapping(std::span<const std::byte> bytes) noexcept : bytes_{bytes} {}
  std::span<const std::byte> bytes_;
};

/// A frozen image: the mapped file, the CRC32C of every page and which pages are all zero, both
/// computed once. Nothing may write the file while it is served: a change during the scan cannot be
/// seen here, and a page changed afterwards no longer fits its checksum, so every client rejects
/// it. Const functions may be called from any thread; pages are named by a Gfn < nb_pages().
class Image {
 public:
  /// Maps and scans `path`, on all CPUs of the calling thread: EAL pins its caller to one, and TBB
  /// workers started then would all share it.
  /// @return as FileMapping::open; EINVAL: image id 0, or pages behind the file's last; EIO: a
  /// block
  ///         cannot be read; ECANCELED: stopped; ENOMEM
  [[nodiscard]] static Result<Image> open(const std::filesystem::path& path,
                                          const ImageOptions& options = {});

  [[nodiscard]] std::uint64_t image_id() const noexcept { return image_id_; }
  [[nodiscard]] std::uint32_t epoch() const noexcept { return epoch_; }
  [[nodiscard]] std::uint8_t space() const noexcept { return space_; }
  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return crcs_.size(); }
  [[nodiscard]] std::uint64_t nb_zero_pages() const noexcept { return nb_zero_pages_; }
  /// Whether some pages are still a parent's own: they can only be copied, never mapped.
  [[nodiscard]] bool is_live() const noexcept { return live_ != nullptr; }
  /// Pages that were copied aside for a parent that runs on. Any thread.
  [[nodiscard]] std::uint64_t nb_aside_pages() const noexcept;
  /// Asks the cache for a page's first bytes; what follows the CPU fetches ahead by itself.
  void prefetch(Gfn gfn) const noexcept {
    constexpr std::size_t kLine = 64, kFirst = 8 * kLine;
    const std::byte* page = bytes().data() + gfn.value * kPageSize;
    for (std::size_t i = 0; i < kFirst; i += kLine) __builtin_prefetch(page + i);
  }
  /// Bytes [offset, offset + out.size()) of a page. Any thread.
  void copy(Gfn gfn, std::size_t offset, std::span<std::byte> out) const noexcept;

  /// The whole mapping, page aligned; lives as long as the image, also when that is moved.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return mapping_.bytes(); }
  [[nodiscard]] std::span<const std::uint32_t> crcs() const noexcept { return crcs_; }
  /// Bit p % 64 of word p / 64: page p is all zero. Bits behind the last page are 0.
  [[nodiscard]] std::span<const std::uint64_t> zero_words() const noexcept { return zero_words_; }

  /// @pre not is_live()
  [[nodiscard]] std::span<const std::byte, kPageSize> page(Gfn gfn) const noexcept {
    return std::span<const std::byte, kPageSize>{bytes().data() + gfn.value * kPageSize, kPageSize};
  }
  /// Of every page, if that was asked for. The caller may take them away.
  [[nodiscard]] std::vector<Hash>& page_hashes() noexcept { return hashes_; }
  [[nodiscard]] std::uint32_t crc(Gfn gfn) const noexcept { return crcs_[gfn.value]; }
  [[nodiscard]] bool is_zero(Gfn gfn) const noexcept {
    return (zero_words_[gfn.value / 64] >> (gfn.value % 64) & 1U) != 0;
  }

 private:
  explicit Image(FileMapping mapping) : mapping_{std::move(mapping)} {}
  [[nodiscard]] bool mark_zero(PageRange pages) noexcept;
  [[nodiscard]] bool scan(Progress* progress, const std::atomic<bool>* stop);
  [[nodiscard]] bool scan_words(std::size_t begin, std::size_t end) noexcept;
  [[nodiscard]] bool lives(Gfn gfn) const noexcept;
  [[nodiscard]] std::span<const std::byte, kPageSize> look_at(
      Gfn gfn, std::span<std::byte, kPageSize> room) const noexcept;
  [[nodiscard]] std::uint64_t content_id() const noexcept;

  FileMapping mapping_;
  std::shared_ptr<const AsideMemory> live_;
  std::vector<std::uint32_t> crcs_;        // one a page
  std::vector<std::uint64_t> zero_words_;  // one bit a page
  std::vector<Hash> hashes_;               // one a page, or none
  std::uint64_t nb_zero_pages_ = 0;
  std::uint64_t image_id_ = 0;
  std::uint32_t epoch_ = 0;
  std::uint8_t space_ = 0;
};

/// Exit status after a SIGBUS: EX_IOERR of sysexits.h.
inline constexpr int kSigbusExitStatus = 74;

/// From now on a SIGBUS ends the process with a clear message on stderr and kSigbusExitStatus,
/// instead of a bare "Bus error": it means that a mapped file was truncated, that its disk failed,
/// or that the host ran out of hugepages. Main thread, before Image::open.
void install_sigbus_handler() noexcept;

}  // namespace snowfabric
