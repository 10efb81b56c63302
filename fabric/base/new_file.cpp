// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/new_file.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <sys/stat.h>

namespace snowfabric {
namespace {

std::unexpected<Error> failed(const char* call, const std::string& path) {
  const int errnum = errno;
  return fail(errnum, std::string{call} + "(" + path + ")");
}

/// A rename would put the file in the place of a device or a socket, too.
Result<void> check_target(const std::string& path) {
  struct stat st{};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return {};
    return failed("lstat", path);
  }
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, path + " is there and is not a regular file");
  return {};
}

}  // namespace

Result<void> write_all(int fd, std::span<const std::byte> bytes, const std::string& name) {
  while (!bytes.empty()) {
    const ssize_t nb = ::write(fd, bytes.data(), bytes.size());
    if (nb < 0 && errno == EINTR) continue;
    if (nb < 0) return failed("write", name);
    bytes = bytes.subspan(static_cast<std::size_t>(nb));
  }
  return {};
}

Result<NewFile> NewFile::create(const std::string& path) {
  if (auto ok = check_target(path); !ok) return std::unexpected(ok.error());
  const auto parent = std::filesystem::path{path}.parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  NewFile file{path};
  file.folder_ = UniqueFd{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!file.folder_) return failed("open", folder);
  file.fd_ = UniqueFd{::mkostemp(file.name_.data(), O_CLOEXEC)};
  if (!file.fd_) return failed("mkostemp", file.name_);
  return file;
}

NewFile::~NewFile() {
  if (fd_ && !name_.empty()) ::unlink(name_.c_str());
}

Result<void> NewFile::skip(std::uint64_t nb_bytes) {
  const off_t end = ::lseek(fd_.get(), static_cast<off_t>(nb_bytes), SEEK_CUR);
  if (end < 0) return failed("lseek", name_);
  if (::ftruncate(fd_.get(), end) != 0) return failed("ftruncate", name_);
  return {};
}

Result<void> NewFile::sync() {
  if (::fdatasync(fd_.get()) != 0) return failed("fdatasync", name_);
  return {};
}

Result<void> NewFile::finish() {
  if (::fsync(fd_.get()) != 0) return failed("fsync", name_);
  if (::rename(name_.c_str(), path_.c_str()) != 0) return failed("rename", path_);
  name_.clear();
  if (::fsync(folder_.get()) != 0 && errno != EINVAL)  // which some file systems have not
    return failed("fsync of the folder", path_);
  return {};
}

}  // namespace snowfabric
