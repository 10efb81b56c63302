// SPDX-License-Identifier: BSD-3-Clause
// Descriptors on disk.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <new>

#include <fmt/format.h>
#include <sys/stat.h>

#include "descriptor/descriptor.hpp"
#include "fabric/base/new_file.hpp"
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

Result<void> write_file(std::span<const std::byte> bytes, const std::string& path) {
  auto file = NewFile::create(path);
  if (!file) return std::unexpected(file.error());
  if (auto ok = file->write(bytes); !ok) return ok;
  auto ok = file->finish();
  // A file whose name may be lost goes at once, lest it is used by then.
  if (!ok && file->is_in_place()) ::unlink(path.c_str());
  return ok;
}

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
  if (auto ok = write_file(*bytes, path); !ok)
    return fail(ok.error().errnum, fmt::format("descriptor: {}", ok.error().what));
  return {};
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, fmt::format("descriptor: write {}", path));
}

}  // namespace snowfabric
