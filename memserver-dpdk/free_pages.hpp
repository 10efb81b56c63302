// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "memserver-dpdk/guest_ram.hpp"
#include "memserver-dpdk/line_socket.hpp"

namespace snowfabric {

/// For a guest that has to look at so many pages before it can answer.
[[nodiscard]] Patience patience_with(std::uint64_t nb_pages) noexcept;

/// Asks a guest which of its frames are free (docs/guest-channel.md). Each of them was free at some
/// moment of this call. Blocks. The guest is not trusted: at most `nb_pages` ranges are taken, and
/// what it claims falsely spoils nothing but its own clones.
/// @param socket_path  the host's end of the guest's port
/// @param nb_pages     of the guest's RAM
/// @return ascending, disjoint; what connect() reported; ENOTSUP: the guest refuses, with its
/// words;
///         EPROTO: not an answer; ETIMEDOUT; ECONNRESET
[[nodiscard]] Result<std::vector<FrameRange>> ask_free_frames(const std::string& socket_path,
                                                              std::uint64_t nb_pages,
                                                              const Patience& patience);

/// What need not be in an image.
struct AvoidedPages {
  std::vector<PageRange> ranges;  ///< ascending, disjoint
  std::uint64_t nb_pages = 0;     ///< in them
  std::uint64_t nb_free = 0;  ///< pages of the image that the guest called free, also if written
};

/// The pages of an image that were free in the guest and have not been written since.
/// @param frames    that are free
/// @param spans     which frames are which pages of a RAM block
/// @param blocks    where the RAM blocks lie in the image
/// @param nb_pages  of the image, from its first: those whose writes are known
/// @param written   whether such a page was written after the guest was asked, or not long before
/// @return ENOTSUP: no span lies in these pages
[[nodiscard]] Result<AvoidedPages> avoidable(std::span<const FrameRange> frames,
                                             std::span<const RamSpan> spans,
                                             std::span<const RamBlock> blocks,
                                             std::uint64_t nb_pages,
                                             const std::function<bool(Gfn)>& written);

}  // namespace snowfabric
