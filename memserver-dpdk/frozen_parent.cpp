// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/frozen_parent.hpp"

namespace snowfabric {

std::string_view to_string(FreezeKind kind) noexcept {
  switch (kind) {
    case FreezeKind::kSnapshot: return "background snapshot";
    case FreezeKind::kShim: return "write protection";
    case FreezeKind::kLogDirty: return "copying while it ran";
    case FreezeKind::kNominate: return "copying on access";
  }
  return "unknown";
}

namespace {

/// Keeps alive what makes these pages stay as they were.
std::shared_ptr<const AsideMemory> pages_of(const FrozenParent& parent) {
  if (parent.nominated) return {parent.nominated, &parent.nominated->pages()};
  if (parent.live) return {parent.live, &parent.live->pages()};
  return nullptr;
}

}  // namespace

Result<Image> FrozenParent::open_image(bool hash_pages, std::optional<int> progress_fd,
                                       const std::atomic<bool>& stop) const {
  return Image::open(memory.path(), {.image_id = descriptor.image_id,
                                     .epoch = descriptor.epoch,
                                     .hash_pages = hash_pages,
                                     .progress_fd = progress_fd,
                                     .live = pages_of(*this),
                                     .zeros = zeros,
                                     .stop = &stop});
}

std::uint64_t wall_clock_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::nanoseconds{now}.count());
}

}  // namespace snowfabric
