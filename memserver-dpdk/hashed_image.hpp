// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "fabric/base/result.hpp"
#include "fabric/hash_tree.hpp"
#include "memserver-dpdk/image.hpp"

namespace snowfabric {

/// An image's hash tree, to be served beside it.
struct ServedTree {
  Image nodes;  ///< of page space kHashTreeSpace, with the image's id and epoch
  Hash root{};
};

/// Uses up the image's page_hashes(). @pre it was opened with hash_pages
/// @return errno of memfd_create(2) or write(2); as Image::open
[[nodiscard]] Result<ServedTree> hash_tree_of(Image& image);

}  // namespace snowfabric
