// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// Behind all of them: into the last range, if it is its next page. @pre fewer than 2^32 in a row
inline void append(Gfn page, std::vector<PageRange>& ranges) {
  if (ranges.empty() || ranges.back().first.value + ranges.back().nb_pages != page.value)
    ranges.push_back({page, 0});
  ++ranges.back().nb_pages;
}

}  // namespace snowfabric
