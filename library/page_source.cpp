// SPDX-License-Identifier: BSD-3-Clause
#include "library/page_source.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <new>
#include <utility>

#include <fmt/format.h>

#include "fabric/crc32c.hpp"

namespace snowfabric {

Result<PageSource> PageSource::of_file(const std::filesystem::path& path,
                                       std::optional<std::uint64_t> image_id, std::uint32_t epoch) {
  ImageOptions options;
  options.image_id = image_id;
  options.epoch = epoch;
  Result<Image> image = Image::open(path, options);
  if (!image) return std::unexpected(image.error());
  PageSource source;
  source.image_.emplace(std::move(*image));
  return source;
}

Result<PageSource> PageSource::of_function(ReadPage read_page, std::uint64_t nb_pages,
                                           std::uint64_t image_id, std::uint32_t epoch) {
  if (image_id == 0) return fail(EINVAL, "image id 0 means none: pages of a function need another");
  if (nb_pages == 0) return fail(EINVAL, "an image of no pages");
  if (nb_pages > std::numeric_limits<std::uint32_t>::max())
    return fail(EFBIG, fmt::format("an image of {} pages", nb_pages));
  PageSource source;
  source.read_page_ = std::move(read_page);
  source.image_id_ = image_id;
  source.epoch_ = epoch;
  if (const auto ok = source.scan(nb_pages); !ok) return std::unexpected(ok.error());
  return source;
}

Result<void> PageSource::scan(std::uint64_t nb_pages) {
  try {
    crcs_.resize(nb_pages);
    zero_words_.resize((nb_pages + 63) / 64);
  } catch (const std::bad_alloc&) {
    return fail(ENOMEM, fmt::format("page tables of {} pages", nb_pages));
  }
  std::array<std::byte, kPageSize> page;
  for (std::uint64_t i = 0; i < nb_pages; ++i) {
    if (const int error = read_page_(Gfn{i}, page); error != 0)
      return fail(error, fmt::format("read page {}", i));
    crcs_[i] = crc32c(page);
    const bool zero = std::ranges::all_of(page, [](std::byte b) { return b == std::byte{0}; });
    zero_words_[i / 64] |= std::uint64_t{zero} << (i % 64);
  }
  return {};
}

ImageView PageSource::view() const noexcept {
  if (image_)
    return {.image_id = image_->image_id(),
            .epoch = image_->epoch(),
            .space = 0,
            .nb_pages = image_->nb_pages(),
            .crc32c = image_->crcs(),
            .zero_words = image_->zero_words()};
  return {.image_id = image_id_,
          .epoch = epoch_,
          .space = 0,
          .nb_pages = crcs_.size(),
          .crc32c = crcs_,
          .zero_words = zero_words_};
}

std::span<const std::byte> PageSource::mapped(Gfn page) const noexcept {
  if (!image_) return {};
  return image_->page(page);
}

}  // namespace snowfabric
