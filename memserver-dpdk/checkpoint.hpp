// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <optional>
#include <string>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/image.hpp"

namespace snowfabric {

/// Whether a checkpoint may be written there: there is nothing, or another checkpoint.
/// @return EEXIST: something else; or errno of the call named
[[nodiscard]] Result<void> may_be_checkpoint(const std::string& path);

/// Writes a frozen image to a file of docs/checkpoint-format.md, whole or not at all. Takes its
/// time; any thread.
/// @param progress_fd  where to show it, e.g. stderr
/// @return ECANCELED: stopped; EBADMSG: a page has changed; as may_be_checkpoint() and NewFile
[[nodiscard]] Result<void> write_checkpoint(const Image& image, const std::string& path,
                                            std::optional<int> progress_fd,
                                            const std::atomic<bool>& stop);

/// The image of such a file, with its id and epoch, each page held to the checksum it was frozen
/// with.
/// @param options  image_id, epoch and nb_pages are the file's
/// @return EBADMSG: it is no such file, or not as it was written; as Image::open
[[nodiscard]] Result<Image> open_checkpoint(const std::string& path, ImageOptions options);

}  // namespace snowfabric
