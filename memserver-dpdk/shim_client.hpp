// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// A part of a parent's RAM.
struct ShimRegion {
  std::uint64_t base = 0;  ///< address in the parent; all in bytes, multiples of a page
  std::uint64_t size = 0;
  std::uint64_t offset = 0;  ///< in the image
  UniqueFd file;             ///< whose shared mapping it is
  std::uint64_t file_offset = 0;
};

/// What a shim hands over: all RAM is registered for write protection with the userfaultfd.
struct ShimMemory {
  UniqueFd uffd;
  std::vector<ShimRegion> regions;  ///< ascending offset, without gaps
};

/// Asks the preload library inside a parent for its RAM (docs/shim.md). Blocks for its answer.
/// @return what connect() reported; with the shim's words EBUSY: another memserver holds it, or
///         ENOTSUP: it cannot be handed over; EPROTO: not a shim's answer
[[nodiscard]] Result<ShimMemory> take_shim_memory(const std::string& socket_path);

}  // namespace snowfabric
