// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/hashed_image.hpp"

#include <cerrno>
#include <new>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>

#include "fabric/base/new_file.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

Result<ServedTree> hash_tree_of(Image& image) {
  const UniqueFd file{memfd_create("snowfabric-hash-tree", MFD_CLOEXEC)};
  if (!file) return fail(errno, "memfd_create for a hash tree");
  Hash root{};
  try {
    const HashTree tree = HashTree::over(std::exchange(image.page_hashes(), {}));
    if (auto ok = write_all(file.get(), tree.bytes(), "a hash tree"); !ok)
      return std::unexpected(ok.error());
    root = tree.root();
  } catch (const std::bad_alloc&) {
    return fail(ENOMEM, fmt::format("hash tree over {} pages", image.nb_pages()));
  }
  auto nodes =
      Image::open(fmt::format("/proc/self/fd/{}", file.get()),
                  {.image_id = image.image_id(), .epoch = image.epoch(), .space = kHashTreeSpace});
  if (!nodes) return std::unexpected(nodes.error());
  return ServedTree{std::move(*nodes), root};
}

}  // namespace snowfabric
