// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// Appends the pages in [begin, begin + nb_bytes) of a file that hold no data: they are zero, and
/// reading them would allocate them. Asks the kernel for ranges and reads nothing. Where the file
/// cannot tell (hugetlbfs, old file systems), all of it is data. Moves the file's offset.
/// @param begin  multiple of a page, like nb_bytes
/// @param first  number of the page at `begin`; a range that continues the last of `out` extends it
void append_holes(int fd, std::uint64_t begin, std::uint64_t nb_bytes, Gfn first,
                  std::vector<PageRange>& out);

}  // namespace snowfabric
