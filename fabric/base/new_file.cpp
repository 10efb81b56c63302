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

/// One without a name goes with its writer, however that ends. @return none where there can be none
UniqueFd open_nameless(const std::string& folder) {
  if (::access("/proc/self/fd", X_OK) != 0) return {};  // by which it gets its name
  return UniqueFd{::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR)};
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
  file.fd_ = open_nameless(folder);
  if (file.fd_) return file;
  file.fd_ = UniqueFd{::mkostemp(file.name_.data(), O_CLOEXEC)};
  if (!file.fd_) return failed("mkostemp", file.name_);
  file.has_name_ = true;
  return file;
}

NewFile::~NewFile() {
  if (fd_ && has_name_ && !is_in_place()) ::unlink(name_.c_str());
}

/// A name can be taken from another file by rename(2) alone, and so there has to be one before.
Result<void> NewFile::give_name() {
  if (has_name_) return {};
  // As mkostemp() draws it: that file's place is taken a moment later.
  if (!UniqueFd{::mkostemp(name_.data(), O_CLOEXEC)}) return failed("mkostemp", name_);
  ::unlink(name_.c_str());
  const std::string own = "/proc/self/fd/" + std::to_string(fd_.get());
  if (::linkat(AT_FDCWD, own.c_str(), AT_FDCWD, name_.c_str(), AT_SYMLINK_FOLLOW) != 0)
    return failed("linkat", name_);
  has_name_ = true;
  return {};
}

Result<void> NewFile::skip(std::uint64_t nb_bytes) {
  const off_t end = ::lseek(fd_.get(), static_cast<off_t>(nb_bytes), SEEK_CUR);
  if (end < 0) return failed("lseek", path_);
  if (::ftruncate(fd_.get(), end) != 0) return failed("ftruncate", path_);
  return {};
}

Result<void> NewFile::sync() {
  if (::fdatasync(fd_.get()) != 0) return failed("fdatasync", path_);
  return {};
}

Result<void> NewFile::finish() {
  if (::fsync(fd_.get()) != 0) return failed("fsync", path_);
  if (const auto ok = give_name(); !ok) return ok;
  if (::rename(name_.c_str(), path_.c_str()) != 0) return failed("rename", path_);
  name_.clear();
  if (::fsync(folder_.get()) != 0 && errno != EINVAL)  // which some file systems have not
    return failed("fsync of the folder", path_);
  return {};
}

}  // namespace snowfabric
