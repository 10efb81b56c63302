// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/server_engine.hpp"
#include "memserver-dpdk/image.hpp"

namespace snowfabric {

/// The pages that a server of the library has: a mapped file's, or what a function of its user
/// gives.
class PageSource {
 public:
  /// Writes a page. @return 0 or an errno
  using ReadPage = std::function<int(Gfn page, std::span<std::byte, kPageSize> out)>;

  /// @return as Image::open
  [[nodiscard]] static Result<PageSource> of_file(const std::filesystem::path& path,
                                                  std::optional<std::uint64_t> image_id,
                                                  std::uint32_t epoch);
  /// Reads every page once.
  /// @return EINVAL: image id or number of pages is 0; EFBIG: more than 2^32 - 1 pages; ENOMEM; or
  ///         what `read_page` returned
  [[nodiscard]] static Result<PageSource> of_function(ReadPage read_page, std::uint64_t nb_pages,
                                                      std::uint64_t image_id, std::uint32_t epoch);

  /// Borrows: this must outlive it, at its place.
  [[nodiscard]] ImageView view() const noexcept;
  /// Where the page lies, if it does.
  [[nodiscard]] std::span<const std::byte> mapped(Gfn page) const noexcept;
  /// @pre it does not. @return 0 or an errno
  [[nodiscard]] int read(Gfn page, std::span<std::byte, kPageSize> out) const {
    return read_page_(page, out);
  }

 private:
  PageSource() = default;
  [[nodiscard]] Result<void> scan(std::uint64_t nb_pages);

  std::optional<Image> image_;
  ReadPage read_page_;
  std::vector<std::uint32_t> crcs_;
  std::vector<std::uint64_t> zero_words_;
  std::uint64_t image_id_ = 0;
  std::uint32_t epoch_ = 0;
};

}  // namespace snowfabric
