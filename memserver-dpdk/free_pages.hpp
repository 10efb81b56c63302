// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"

namespace snowfabric {

/// A run of frames of a guest's physical address space.
struct FrameRange {
  std::uint64_t first = 0;
  std::uint64_t nb_frames = 0;
  bool operator==(const FrameRange&) const = default;
};

/// How long a guest may take over its answer: between two pieces of it, and for all of it.
struct FreePagesPatience {
  std::chrono::milliseconds silence{2000};
  std::chrono::milliseconds whole{5000};
};

/// Asks a guest which of its frames are free (docs/guest-channel.md). Each of them was free at some
/// moment of this call. Blocks. The guest is not trusted: at most `nb_pages` ranges are taken, and
/// what it claims falsely spoils nothing but its own clones.
/// @param socket_path  the host's end of the guest's port
/// @param nb_pages     of the guest's RAM
/// @return ascending, disjoint; what connect() reported; ENOTSUP: the guest refuses, with its
/// words;
///         EPROTO: not an answer; ETIMEDOUT; ECONNRESET
[[nodiscard]] Result<std::vector<FrameRange>> ask_free_frames(
    const std::string& socket_path, std::uint64_t nb_pages, const FreePagesPatience& patience = {});

/// What need not be in an image.
struct AvoidedPages {
  std::vector<PageRange> ranges;  ///< ascending, disjoint
  std::uint64_t nb_pages = 0;     ///< in them
  std::uint64_t nb_free = 0;  ///< pages of the image that the guest called free, also if written
};

/// The pages of an image that were free in the guest and have not been written since. Frames of a
/// PC below 3 GiB are the first pages of its RAM block pc.ram; others are left out.
/// @param frames   ascending, disjoint
/// @param blocks   where the guest's RAM lies in the image
/// @param written  whether a page was written after the guest was asked, or not long before
/// @return ENOTSUP: the image does not begin with pc.ram
[[nodiscard]] Result<AvoidedPages> avoidable(std::span<const FrameRange> frames,
                                             std::span<const RamBlock> blocks,
                                             const std::function<bool(Gfn)>& written);

}  // namespace snowfabric
