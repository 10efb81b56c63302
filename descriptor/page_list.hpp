// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"

/// Lists of pages as text: what memtap records, and what people write.
namespace snowfabric {

/// As read_page_list() reads it.
[[nodiscard]] std::string to_page_list(std::span<const PageRange> ranges);

/// Page numbers and ranges ("17", "0x20-0x3f"), one a line; # begins a comment. A page may stand
/// there more than once. Control path: blocks on the file.
/// @param nb_pages  of the image, in which all must lie; at most kMaxImagePages
/// @return EINVAL: the text names file and line; EFBIG: more than kMaxPageRanges; or the errno of
///         reading it
[[nodiscard]] Result<std::vector<PageRange>> read_page_list(
    const std::string& path, std::uint64_t nb_pages = kMaxImagePages);

}  // namespace snowfabric
