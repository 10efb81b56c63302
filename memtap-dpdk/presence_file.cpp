// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/presence_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

namespace snowfabric {
namespace {

std::size_t file_bytes(std::size_t nb_pages) {
  return sizeof(PresenceHeader) + Presence::words_for(nb_pages) * sizeof(Presence::Word);
}

Result<void> check_geometry(const ImageGeometry& image) {
  if (image.nb_pages == 0 || image.nb_pages > kMaxPresencePages)
    return fail(EINVAL, fmt::format("presence file: {} pages is out of range", image.nb_pages));
  return {};
}

Result<void> lock(int fd, const std::string& path) {
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) return {};
  if (errno == EWOULDBLOCK)
    return fail(EBUSY,
                fmt::format("{} belongs to a running memtap; give this one another folder", path));
  return fail(errno, fmt::format("flock {}", path));
}

/// Unlinks a file whose owner died. ENOENT is success: somebody else did.
Result<void> remove_stale(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)};
  if (!fd && errno == ENOENT) return {};
  if (!fd) return fail(errno, fmt::format("open {}", path));
  if (auto locked = lock(fd.get(), path); !locked) return locked;
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    return fail(errno, fmt::format("unlink {}", path));
  return {};
}

Result<void> check_file(int fd, const std::string& path, std::size_t expected_bytes) {
  struct stat st{};
  if (fstat(fd, &st) != 0) return fail(errno, fmt::format("fstat {}", path));
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, fmt::format("{} is not a regular file", path));
  if (st.st_uid != geteuid() || (st.st_mode & 077U) != 0)
    return fail(EACCES, fmt::format("{} must belong to uid {} with mode 0600", path, geteuid()));
  if (static_cast<std::size_t>(st.st_size) != expected_bytes)
    return fail(EINVAL, fmt::format("{} has {} bytes, a bitmap of this image has {}", path,
                                    st.st_size, expected_bytes));
  return {};
}

Result<void> check_header(const PresenceHeader& h, const std::string& path,
                          const ImageGeometry& image) {
  if (h.magic != kPresenceMagic) return fail(EINVAL, fmt::format("{} is no presence file", path));
  if (h.version != kPresenceVersion)
    return fail(EINVAL, fmt::format("{} has version {}, this program reads {}", path, h.version,
                                    kPresenceVersion));
  if (h.header_bytes != sizeof h || h.page_bytes != kPageSize)
    return fail(EINVAL, fmt::format("{}: header of {} bytes, pages of {} bytes: not ours", path,
                                    h.header_bytes, h.page_bytes));
  if (const ImageGeometry found{h.image_id, h.nb_pages, h.epoch}; found != image)
    return fail(
        EINVAL,
        fmt::format("{} is of image {:#x} epoch {} ({} pages), not of {:#x} epoch {} ({})", path,
                    h.image_id, h.epoch, h.nb_pages, image.image_id, image.epoch, image.nb_pages));
  return {};
}

}  // namespace

Result<PresenceFile> PresenceFile::map(std::string path, UniqueFd fd, const ImageGeometry& image) {
  const std::size_t bytes = file_bytes(image.nb_pages);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (p == MAP_FAILED) return fail(errno, fmt::format("mmap {} ({} bytes)", path, bytes));
  return PresenceFile{
      std::move(path), std::move(fd), {static_cast<std::byte*>(p), bytes}, image.nb_pages};
}

void PresenceFile::clean(const std::string& folder) noexcept {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator{folder, none})
    if (entry.path().extension() == ".presence")
      if (const auto ok = remove_stale(entry.path()); !ok) continue;  // in use
}

Result<PresenceFile> PresenceFile::create(std::string path, const ImageGeometry& image) {
  if (auto ok = check_geometry(image); !ok) return std::unexpected(ok.error());
  if (auto ok = remove_stale(path); !ok) return std::unexpected(ok.error());
  UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)};
  if (!fd) return fail(errno, fmt::format("create {}", path));
  if (auto ok = lock(fd.get(), path); !ok) return std::unexpected(ok.error());
  // Reserved now: a full tmpfs would else be a SIGBUS at some later store.
  const auto bytes = static_cast<off_t>(file_bytes(image.nb_pages));
  if (const int err = posix_fallocate(fd.get(), 0, bytes); err != 0) {
    unlink(path.c_str());
    return fail(err, fmt::format("reserve {} bytes for {}", bytes, path));
  }
  auto file = map(path, std::move(fd), image);
  if (!file) {
    unlink(path.c_str());
    return file;
  }
  auto* header = reinterpret_cast<PresenceHeader*>(file->bytes_.data());
  *header = {kPresenceMagic, kPresenceVersion, sizeof *header, image.nb_pages,
             image.image_id, image.epoch,      kPageSize,      {}};
  return file;
}

Result<PresenceFile> PresenceFile::open(std::string path, const ImageGeometry& image) {
  if (auto ok = check_geometry(image); !ok) return std::unexpected(ok.error());
  UniqueFd fd{::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)};
  if (!fd) return fail(errno, fmt::format("open {}", path));
  if (auto ok = check_file(fd.get(), path, file_bytes(image.nb_pages)); !ok)
    return std::unexpected(ok.error());
  if (auto ok = lock(fd.get(), path); !ok) return std::unexpected(ok.error());
  auto file = map(std::move(path), std::move(fd), image);
  if (!file) return file;
  file->keep();  // until it is known to be ours
  const auto& header = *reinterpret_cast<const PresenceHeader*>(file->bytes_.data());
  if (auto ok = check_header(header, file->path_, image); !ok) return std::unexpected(ok.error());
  file->unlink_ = true;
  file->view().unclaim_all();
  return file;
}

PresenceFile::PresenceFile(PresenceFile&& other) noexcept
    : path_{std::move(other.path_)},
      fd_{std::move(other.fd_)},
      bytes_{std::exchange(other.bytes_, {})},
      nb_pages_{other.nb_pages_},
      unlink_{other.unlink_} {}

PresenceFile::~PresenceFile() {
  if (bytes_.empty()) return;
  munmap(bytes_.data(), bytes_.size());
  if (unlink_) unlink(path_.c_str());
}

Presence PresenceFile::view() const noexcept {
  auto* words = reinterpret_cast<Presence::Word*>(bytes_.data() + sizeof(PresenceHeader));
  return {{words, Presence::words_for(nb_pages_)}, nb_pages_};
}

}  // namespace snowfabric
