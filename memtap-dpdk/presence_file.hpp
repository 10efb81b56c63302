// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "fabric/base/presence.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// Which frozen image a presence bitmap belongs to.
struct ImageGeometry {
  std::uint64_t image_id{};
  std::uint64_t nb_pages{};
  std::uint32_t epoch{};
  constexpr bool operator==(const ImageGeometry&) const = default;
};

/// Front of the file; Presence words follow. Host byte order: the file never leaves the host.
struct PresenceHeader {
  std::uint64_t magic;         //  0  kPresenceMagic
  std::uint32_t version;       //  8  kPresenceVersion
  std::uint32_t header_bytes;  // 12  where the words begin
  std::uint64_t nb_pages;      // 16
  std::uint64_t image_id;      // 24
  std::uint32_t epoch;         // 32
  std::uint32_t page_bytes;    // 36
  std::uint64_t reserved[3];   // 40
};
static_assert(sizeof(PresenceHeader) == 64);
inline constexpr std::uint64_t kPresenceMagic = 0x434e'5345'5250'4653ULL;  ///< "SFPRESNC"
inline constexpr std::uint32_t kPresenceVersion = 1;
inline constexpr std::uint64_t kMaxPresencePages = std::uint64_t{1} << 36U;  ///< 256 TiB

/// One clone's presence bitmap in a shared-memory file. The owner holds a lock on the file, so that
/// a file left by a dead memtap is told from one in use. Control path only.
class PresenceFile {
 public:
  /// Makes a new file of mode 0600 with every page absent; a file nobody owns is replaced.
  /// @return EBUSY: a live process owns it; EINVAL: bad geometry, or `path` is there and is not a
  ///         regular file; or what the call named reported
  static Result<PresenceFile> create(std::string path, const ImageGeometry& image);

  /// Removes the presence files of dead memtaps from a folder; others stay. What a clone of theirs
  /// has, its kernel, QEMU or Xen tells (docs/adr/0007).
  static void clean(const std::string& folder) noexcept;

  PresenceFile(PresenceFile&& other) noexcept;
  PresenceFile& operator=(PresenceFile&&) = delete;
  /// Unmaps and unlinks.
  ~PresenceFile();

  [[nodiscard]] Presence view() const noexcept;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  PresenceFile(std::string path, UniqueFd fd, std::span<std::byte> bytes, std::size_t nb_pages)
      : path_{std::move(path)}, fd_{std::move(fd)}, bytes_{bytes}, nb_pages_{nb_pages} {}
  static Result<PresenceFile> map(std::string path, UniqueFd fd, const ImageGeometry& image);

  std::string path_;
  UniqueFd fd_;
  std::span<std::byte> bytes_;
  std::size_t nb_pages_;
};

}  // namespace snowfabric
