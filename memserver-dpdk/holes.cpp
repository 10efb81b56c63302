// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/holes.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace snowfabric {
namespace {

void append(std::vector<PageRange>& out, std::uint64_t first, std::uint64_t last) {
  if (first >= last) return;
  const auto nb_pages = static_cast<std::uint32_t>(last - first);
  if (!out.empty() && out.back().first.value + out.back().nb_pages == first)
    out.back().nb_pages += nb_pages;
  else
    out.push_back({Gfn{first}, nb_pages});
}

}  // namespace

void append_holes(int fd, std::uint64_t begin, std::uint64_t nb_bytes, Gfn first,
                  std::vector<PageRange>& out) {
  const std::uint64_t end = begin + nb_bytes;
  for (std::uint64_t hole = begin; hole < end;) {
    const off_t found = lseek(fd, static_cast<off_t>(hole), SEEK_DATA);
    if (found < 0 && errno != ENXIO) return;  // ENXIO: a hole up to the end
    const std::uint64_t data = found < 0 ? end : std::min(static_cast<std::uint64_t>(found), end);
    // A file system with small blocks may begin and end holes inside a page.
    append(out, first.value + (hole - begin + kPageSize - 1) / kPageSize,
           first.value + (data - begin) / kPageSize);
    if (data == end) return;
    const off_t next = lseek(fd, static_cast<off_t>(data), SEEK_HOLE);
    if (next < 0) return;
    hole = static_cast<std::uint64_t>(next);
  }
}

}  // namespace snowfabric
