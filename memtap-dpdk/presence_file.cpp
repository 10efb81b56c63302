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
  // A FIFO: no wait for somebody who writes.
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
  if (!fd && errno == ENOENT) return {};
  if (!fd) return fail(errno, fmt::format("open {}", path));
  struct stat st{};
  if (fstat(fd.get(), &st) != 0) return fail(errno, fmt::format("fstat {}", path));
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, fmt::format("{} is not a regular file", path));
  if (auto locked = lock(fd.get(), path); !locked) return locked;
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    return fail(errno, fmt::format("unlink {}", path));
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
  std::error_code error;  // then it is at its end
  for (std::filesystem::directory_iterator at{folder, error}; at != end(at); at.increment(error))
    if (at->path().extension() == ".presence")
      if (const auto ok = remove_stale(at->path()); !ok) continue;  // in use
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

PresenceFile::PresenceFile(PresenceFile&& other) noexcept
    : path_{std::move(other.path_)},
      fd_{std::move(other.fd_)},
      bytes_{std::exchange(other.bytes_, {})},
      nb_pages_{other.nb_pages_} {}

PresenceFile::~PresenceFile() {
  if (bytes_.empty()) return;
  munmap(bytes_.data(), bytes_.size());
  unlink(path_.c_str());
}

Presence PresenceFile::view() const noexcept {
  auto* words = reinterpret_cast<Presence::Word*>(bytes_.data() + sizeof(PresenceHeader));
  return {{words, Presence::words_for(nb_pages_)}, nb_pages_};
}

}  // namespace snowfabric
