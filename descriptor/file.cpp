// SPDX-License-Identifier: BSD-3-Clause
// Descriptors on disk.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <new>

#include <fmt/format.h>
#include <sys/stat.h>

#include "descriptor/descriptor.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kMaxFileBytes = kMaxDescriptorBodyBytes + 4096;  ///< room for any header

std::unexpected<Error> failed(const char* call, const std::string& path) {
  const int errnum = errno;
  return fail(errnum, fmt::format("descriptor: {}({})", call, path));
}

Result<SecretBytes> read_all(int fd, std::size_t file_bytes, const std::string& path) {
  SecretBytes bytes(file_bytes);
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed("read", path);
    if (n == 0) break;  // truncated meanwhile: decode says so
    done += static_cast<std::size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

Result<void> write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed("write", path);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<SecretBytes> read_file(const std::string& path) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // a FIFO: no wait
  if (!fd) return failed("open", path);
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return failed("fstat", path);
  if (!S_ISREG(st.st_mode))
    return fail(EINVAL, fmt::format("descriptor: {} is not a regular file", path));
  const auto file_bytes = static_cast<std::size_t>(st.st_size);
  if (file_bytes > kMaxFileBytes)
    return fail(EFBIG, fmt::format("descriptor: {} has {} bytes, at most {}", path, file_bytes,
                                   kMaxFileBytes));
  return read_all(fd.get(), file_bytes, path);
}

/// A rename would put the file in the place of a device or a socket, too.
Result<void> check_target(const std::string& path) {
  struct stat st{};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return {};
    return failed("lstat", path);
  }
  if (!S_ISREG(st.st_mode))
    return fail(EINVAL, fmt::format("descriptor: {} is there and is not a regular file", path));
  return {};
}

Result<UniqueFd> open_folder_of(const std::string& path) {
  const auto parent = std::filesystem::path{path}.parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  UniqueFd fd{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!fd) return failed("open", folder);
  return fd;
}

/// A file whose name may be lost goes at once, lest it is used by then.
Result<void> sync_name(const UniqueFd& folder, const std::string& path) {
  if (::fsync(folder.get()) == 0 || errno == EINVAL) return {};  // which some file systems have not
  auto error = failed("fsync of the folder", path);
  ::unlink(path.c_str());
  return error;
}

/// The file that is to become `path`: gone again unless it was renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path)
      : name_{path + ".XXXXXX"}, fd_{::mkostemp(name_.data(), O_CLOEXEC)} {}
  ~TemporaryFile() {
    if (fd_ && !renamed_) ::unlink(name_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  Result<void> fill(std::span<const std::byte> bytes) {
    if (!fd_) return failed("mkostemp", name_);
    if (auto ok = write_all(fd_.get(), bytes, name_); !ok) return ok;
    if (::fsync(fd_.get()) != 0) return failed("fsync", name_);
    return {};
  }
  Result<void> rename_to(const std::string& path) {
    if (::rename(name_.c_str(), path.c_str()) != 0) return failed("rename", path);
    renamed_ = true;
    return {};
  }

 private:
  std::string name_;
  UniqueFd fd_;
  bool renamed_ = false;
};

}  // namespace

Result<Descriptor> read_descriptor(const std::string& path) try {
  const auto bytes = read_file(path);
  if (!bytes) return std::unexpected(bytes.error());
  auto descriptor = decode(*bytes);
  if (!descriptor)
    return fail(descriptor.error().errnum, fmt::format("{}: {}", path, descriptor.error().what));
  return descriptor;
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, fmt::format("descriptor: read {}", path));
}

Result<void> write_descriptor(const Descriptor& descriptor, const std::string& path) try {
  const auto bytes = encode(descriptor);
  if (!bytes) return std::unexpected(bytes.error());
  if (auto ok = check_target(path); !ok) return ok;
  const auto folder = open_folder_of(path);  // while nothing has changed
  if (!folder) return std::unexpected(folder.error());
  TemporaryFile file{path};
  if (auto ok = file.fill(*bytes); !ok) return ok;
  if (auto ok = file.rename_to(path); !ok) return ok;
  return sync_name(*folder, path);
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, fmt::format("descriptor: write {}", path));
}

}  // namespace snowfabric
