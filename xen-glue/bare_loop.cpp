// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/bare_loop.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include <sys/mman.h>

#include "fabric/base/frame_number.hpp"

extern "C" {
#include <xenforeignmemory.h>
}

namespace snowfabric::xen {

Result<std::chrono::microseconds> bare_copy(DomId domain, std::span<std::byte> out,
                                            std::size_t burst_pages) {
  using Clock = std::chrono::steady_clock;
  auto* memory = xenforeignmemory_open(nullptr, 0);
  if (memory == nullptr) return fail(errno, "xenforeignmemory_open");
  const std::size_t nb_pages = out.size() / kPageSize;
  std::vector<xen_pfn_t> frames(burst_pages);
  std::vector<int> errors(burst_pages);
  int errnum = 0;
  const auto began = Clock::now();
  for (std::size_t first = 0; first < nb_pages && errnum == 0; first += burst_pages) {
    const std::size_t nb_burst = std::min(burst_pages, nb_pages - first);
    for (std::size_t i = 0; i < nb_burst; ++i) frames[i] = first + i;
    void* mapped = xenforeignmemory_map(memory, static_cast<std::uint16_t>(domain), PROT_READ,
                                        nb_burst, frames.data(), errors.data());
    if (mapped == nullptr) {
      errnum = errno;
      break;
    }
    for (std::size_t i = 0; i < nb_burst; ++i)
      if (errors[i] == 0)
        std::memcpy(out.data() + (first + i) * kPageSize,
                    static_cast<const std::byte*>(mapped) + i * kPageSize, kPageSize);
    xenforeignmemory_unmap(memory, mapped, nb_burst);
  }
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - began);
  xenforeignmemory_close(memory);
  if (errnum != 0) return fail(errnum, "xenforeignmemory_map");
  return took;
}

}  // namespace snowfabric::xen
