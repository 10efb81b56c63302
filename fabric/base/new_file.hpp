// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// Writes all of it. @return errno of write(2)
[[nodiscard]] Result<void> write_all(int fd, std::span<const std::byte> bytes,
                                     const std::string& name);

/// A file that appears whole or not at all: written beside its place, by its owner alone to be
/// read, and renamed. Nothing is left if its writer dies, where the file system knows files without
/// a name (O_TMPFILE); else `path` with six more letters is. Control path.
class NewFile {
 public:
  /// @param path  of nothing, or of a regular file, which is replaced
  /// @return EINVAL: something else is there; or errno of the call named
  [[nodiscard]] static Result<NewFile> create(const std::string& path);

  NewFile(NewFile&& from) noexcept
      : path_{std::move(from.path_)},
        name_{std::exchange(from.name_, {})},
        has_name_{from.has_name_},
        folder_{std::move(from.folder_)},
        fd_{std::move(from.fd_)} {}
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile();  ///< what was not finished goes

  [[nodiscard]] Result<void> write(std::span<const std::byte> bytes) {
    return write_all(fd_.get(), bytes, path_);
  }
  /// Zeros that take no room.
  [[nodiscard]] Result<void> skip(std::uint64_t nb_bytes);
  /// What was written is on the disk afterwards. @return errno of fdatasync(2)
  [[nodiscard]] Result<void> sync();
  /// Puts it in its place, on the disk too.
  [[nodiscard]] Result<void> finish();
  /// Though finish() may have failed: its name is not on the disk then.
  [[nodiscard]] bool is_in_place() const noexcept { return name_.empty(); }

 private:
  explicit NewFile(const std::string& path) : path_{path}, name_{path + ".XXXXXX"} {}
  [[nodiscard]] Result<void> give_name();

  std::string path_, name_;  // name_: empty once it has gone
  bool has_name_ = false;    // from the start, or from give_name() on
  UniqueFd folder_, fd_;
};

}  // namespace snowfabric
