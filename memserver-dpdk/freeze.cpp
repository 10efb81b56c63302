// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/freeze.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "fabric/base/parse_number.hpp"
#include "memserver-dpdk/checkpoint.hpp"
#include "memserver-dpdk/qemu_parent.hpp"
#include "memserver-dpdk/xen_parent.hpp"

namespace snowfabric {
namespace {

Result<std::optional<std::uint64_t>> image_id_of(const ServerOptions& options, std::size_t i) {
  if (options.image_ids.empty()) return std::nullopt;
  const std::string& text = options.image_ids[i];
  const auto id = parse_number(text, 16);
  if (!id || *id == 0)
    return fail(EINVAL,
                fmt::format("--image-id {}: not a 64-bit hexadecimal number above 0", text));
  return id;
}

std::uint64_t since(std::chrono::steady_clock::time_point instant) {
  const auto passed = std::chrono::steady_clock::now() - instant;
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(passed).count());
}

const std::string& name_of_parent(const ServerOptions& options) {
  return options.qemu.empty() ? options.xen : options.qemu;
}

Result<FrozenParent> take_parent(const ServerOptions& options, const std::atomic<bool>& stop) {
  const auto id = image_id_of(options, 0);
  if (!id) return std::unexpected(id.error());
  const std::uint64_t image_id = id->value_or(random_id());
  spdlog::info("freezing the parent {}", name_of_parent(options));
  auto parent = options.qemu.empty() ? freeze_xen({.domain = options.xen,
                                                   .image_id = image_id,
                                                   .epoch = options.epoch,
                                                   .keep = options.xen_ram,
                                                   .progress_fd = STDERR_FILENO},
                                                  stop)
                                     : freeze_qemu({.qmp_path = options.qemu,
                                                    .image_id = image_id,
                                                    .epoch = options.epoch,
                                                    .progress_fd = STDERR_FILENO,
                                                    .free_pages_path = options.free_pages,
                                                    .memtap_path = options.memtap},
                                                   stop);
  if (parent && !parent->why_no_shim.empty())
    spdlog::warn("the parent's preload library cannot be used: {}", parent->why_no_shim);
  if (parent && !parent->why_none_avoided.empty())
    spdlog::warn("free pages are part of the image: {}", parent->why_none_avoided);
  return parent;
}

/// Of the last image.
Result<void> add_hash_tree(Frozen& frozen) {
  auto tree = hash_tree_of(frozen.images.back());
  if (!tree) return std::unexpected(tree.error());
  frozen.trees.push_back(std::move(*tree));
  return {};
}

/// The memory of a parent, with its hash tree if there is to be one.
Result<void> add_image(Frozen& frozen, FrozenParent& parent, bool hash_tree,
                       const std::atomic<bool>& stop) {
  auto image = parent.open_image(hash_tree, STDERR_FILENO, stop);
  if (!image) return std::unexpected(image.error());
  frozen.images.push_back(std::move(*image));
  if (!hash_tree) return {};
  if (auto ok = add_hash_tree(frozen); !ok) return ok;
  const ServedTree& tree = frozen.trees.back();
  parent.descriptor.spaces.push_back({kHashTreeSpace, tree.nodes.nb_pages()});
  parent.descriptor.hash_root.assign(tree.root.begin(), tree.root.end());
  return {};
}

/// @return milliseconds since the parent was stopped
Result<std::uint64_t> add_descriptor(Frozen& frozen, const FrozenParent& parent,
                                     const std::string& path) {
  if (auto ok = write_descriptor(parent.descriptor, path); !ok) return std::unexpected(ok.error());
  frozen.descriptor = UnservedDescriptor{path};
  const std::uint64_t ms = since(parent.since);
  spdlog::info("frozen by {}: paused for {:.1f} ms, descriptor {} written after {} ms",
               to_string(parent.kind), static_cast<double>(parent.pause.count()) / 1000, path, ms);
  return ms;
}

/// A checkpoint is served with its own id and epoch, and nothing beside it.
Result<void> check_restore(const ServerOptions& options) {
  if (has_parent(options) || !options.images.empty())
    return fail(EINVAL, "--restore serves a checkpoint: name no image and no parent beside it");
  if (!options.checkpoint_file.empty())
    return fail(EINVAL, "--checkpoint and --restore: the image is in a checkpoint already");
  if (!options.image_ids.empty() || options.epoch != 1)
    return fail(EINVAL, "--image-id and --epoch are the checkpoint's own with --restore");
  if (!options.key_file.empty() && !options.descriptor_file.empty())
    return fail(EINVAL, "--key is in the descriptor: name one of them with --restore");
  return {};
}

/// What clones have is what they started from.
Result<void> check_same(const Descriptor& descriptor, const Frozen& frozen) {
  const Image& image = frozen.images.front();
  if (descriptor.image_id != image.image_id() || descriptor.epoch != image.epoch() ||
      descriptor.spaces.front().nb_pages != image.nb_pages())
    return fail(EBADMSG,
                fmt::format("the checkpoint is of image {:016x} epoch {}, {} pages, the "
                            "descriptor of {:016x} epoch {}, {} pages",
                            image.image_id(), image.epoch(), image.nb_pages(), descriptor.image_id,
                            descriptor.epoch, descriptor.spaces.front().nb_pages));
  if (!descriptor.hash_root.empty() &&
      !std::ranges::equal(descriptor.hash_root, frozen.trees.front().root))
    return fail(EBADMSG, "the checkpoint's hash tree has another root than the descriptor says");
  return {};
}

Result<Frozen> open_restored(const ServerOptions& options) {
  std::optional<Descriptor> descriptor;
  if (!options.descriptor_file.empty()) {
    auto read = read_descriptor(options.descriptor_file);
    if (!read) return std::unexpected(read.error());
    descriptor = std::move(*read);
  }
  const bool has_tree = options.hash_tree || (descriptor && !descriptor->hash_root.empty());
  auto image =
      open_checkpoint(options.restore, {.hash_pages = has_tree, .progress_fd = STDERR_FILENO});
  if (!image) return std::unexpected(image.error());
  Frozen frozen;
  frozen.names = {options.restore};
  frozen.images.push_back(std::move(*image));
  if (has_tree)
    if (auto ok = add_hash_tree(frozen); !ok) return std::unexpected(ok.error());
  if (!descriptor) return frozen;
  if (auto ok = check_same(*descriptor, frozen); !ok) return std::unexpected(ok.error());
  if (const std::span<const std::byte> key = descriptor->group_key; key.size() == GroupKey::kBytes)
    frozen.key.emplace(key.first<GroupKey::kBytes>());
  return frozen;
}

}  // namespace

UnservedDescriptor::~UnservedDescriptor() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<void> check_sources(const ServerOptions& options) {
  if (options.qemu.empty())
    for (const auto& [given, option] :
         {std::pair{!options.free_pages.empty(), "--free-pages"},
          std::pair{!options.memtap.empty(), "--memtap"}, std::pair{options.detach, "--detach"}})
      if (given) return fail(EINVAL, fmt::format("{} belongs to --qemu", option));
  if (options.xen.empty() && options.xen_ram) return fail(EINVAL, "--xen-ram belongs to --xen");
  if (!options.restore.empty()) return check_restore(options);
  if (!options.checkpoint_file.empty() && options.images.size() > 1)
    return fail(EINVAL, "--checkpoint is of one image: name one");
  if (!options.checkpoint_file.empty())
    if (auto ok = may_be_checkpoint(options.checkpoint_file); !ok) return ok;
  if (!has_parent(options)) {
    if (options.images.empty())
      return fail(EINVAL,
                  "nothing to serve: name image files, a checkpoint with --restore, or a parent "
                  "with --qemu or --xen");
    if (!options.descriptor_file.empty())
      return fail(EINVAL, "--descriptor belongs to --qemu or --xen: a raw image has no state");
    if (!options.image_ids.empty() && options.image_ids.size() != options.images.size())
      return fail(EINVAL, fmt::format("{} images but {} --image-id", options.images.size(),
                                      options.image_ids.size()));
  } else {
    if (!options.images.empty())
      return fail(EINVAL, "a parent is served instead of image files: name one or the other");
    if (!options.qemu.empty() && !options.xen.empty())
      return fail(EINVAL, "--qemu and --xen: one memserver freezes one parent");
    if (options.descriptor_file.empty())
      return fail(EINVAL, "a parent needs --descriptor FILE: no clone can start without it");
    if (options.image_ids.size() > 1)
      return fail(EINVAL, "a parent is one image: give one --image-id");
  }
  for (std::size_t i = 0; i < options.image_ids.size(); ++i)
    if (const auto id = image_id_of(options, i); !id) return std::unexpected(id.error());
  return {};
}

Result<Frozen> open_files(const ServerOptions& options) {
  if (!options.restore.empty()) return open_restored(options);
  Frozen frozen;
  frozen.names = options.images;
  for (std::size_t i = 0; i < options.images.size(); ++i) {
    const auto id = image_id_of(options, i);
    if (!id) return std::unexpected(id.error());
    auto image = Image::open(options.images[i], {.image_id = *id,
                                                 .epoch = options.epoch,
                                                 .hash_pages = options.hash_tree,
                                                 .progress_fd = STDERR_FILENO});
    if (!image) return std::unexpected(image.error());
    const auto same_id = [&](const Image& other) { return other.image_id() == image->image_id(); };
    if (std::ranges::any_of(frozen.images, same_id))
      return fail(EEXIST, fmt::format("{}: image id {:016x} is served already", options.images[i],
                                      image->image_id()));
    frozen.images.push_back(std::move(*image));
    if (!options.hash_tree) continue;
    if (auto ok = add_hash_tree(frozen); !ok) return std::unexpected(ok.error());
  }
  return frozen;
}

Result<Frozen> freeze_parent(const ServerOptions& options, const std::optional<GroupKey>& key,
                             const MacAddr& server, const CpuMask& cpus,
                             const std::atomic<bool>& stop) {
  const OnCpus wide{cpus};
  auto parent = take_parent(options, stop);
  if (!parent) return std::unexpected(parent.error());
  if (stop) return fail(ECANCELED, "the parent is frozen and nothing more");
  parent->descriptor.server = server;
  if (key) parent->descriptor.group_key.assign(key->bytes().begin(), key->bytes().end());
  Frozen frozen;
  frozen.names = {name_of_parent(options)};
  Result<std::uint64_t> descriptor_ms;
  const auto describe = [&] {
    return descriptor_ms = add_descriptor(frozen, *parent, options.descriptor_file);
  };
  if (!options.hash_tree && !describe()) return std::unexpected(descriptor_ms.error());
  if (auto ok = add_image(frozen, *parent, options.hash_tree, stop); !ok)
    return std::unexpected(ok.error());
  if (options.detach && parent->live)  // if it is stopped, nobody will ask for the rest
    parent->live->detach([&](Gfn page) { return stop || frozen.images.front().is_zero(page); });
  if (options.hash_tree && !describe()) return std::unexpected(descriptor_ms.error());
  const std::uint64_t total_ms = since(parent->since);
  spdlog::info("image complete after {} ms, {} pages avoided of {} free ones", total_ms,
               parent->nb_avoided_pages, parent->nb_free_pages);
  frozen.freeze = {{"by_shim", parent->kind == FreezeKind::kShim ? 1 : 0},
                   {"pause_us", static_cast<std::uint64_t>(parent->pause.count())},
                   {"descriptor_ms", *descriptor_ms},
                   {"total_ms", total_ms},
                   {"avoided_pages", parent->nb_avoided_pages},
                   {"free_pages", parent->nb_free_pages}};
  frozen.freeze.insert(frozen.freeze.end(), parent->details.begin(), parent->details.end());
  return frozen;
}

}  // namespace snowfabric
