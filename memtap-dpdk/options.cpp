// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/options.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "descriptor/descriptor.hpp"
#include "descriptor/page_list.hpp"
#include "fabric/base/hex.hpp"
#include "fabric/base/parse_number.hpp"

namespace snowfabric {
namespace {

Result<TapImage> image_of_descriptor(const std::string& path) {
  const auto descriptor = read_descriptor(path);
  if (!descriptor) return std::unexpected(descriptor.error());
  TapImage image{.image_id = descriptor->image_id,
                 .epoch = descriptor->epoch,
                 .server = std::nullopt,
                 .nb_pages = descriptor->spaces.front().nb_pages,
                 .working_set = descriptor->working_set,
                 .zeros = descriptor->zero_pages};
  image.zeros.insert(image.zeros.end(), descriptor->absent_pages.begin(),
                     descriptor->absent_pages.end());
  if (descriptor->server != MacAddr{}) image.server = descriptor->server;
  static_assert(kGroupKeyBytes == GroupKey::kBytes);
  if (!descriptor->group_key.empty())
    image.key.emplace(std::span{descriptor->group_key}.first<GroupKey::kBytes>());
  if (Hash root; descriptor->hash_root.size() == root.size()) {
    std::ranges::copy(descriptor->hash_root, root.begin());
    image.root = root;
  }
  if (descriptor->find(SectionType::kQemuDevices) != nullptr) {
    auto seed = QemuSeed::from(*descriptor);
    if (!seed) return std::unexpected(seed.error());
    image.qemu = std::move(*seed);
  }
  if (descriptor->find(SectionType::kXenDomain) != nullptr) {
    auto seed = XenSeed::from(*descriptor);
    if (!seed) return std::unexpected(seed.error());
    image.xen = std::move(*seed);
  }
  return image;
}

}  // namespace

void add_tap_options(CLI::App& cli, TapOptions& options) {
  add_app_options(cli, options);
  auto* descriptor = cli.add_option("--descriptor", options.descriptor,
                                    "descriptor of the image to fetch; QEMU clones need it");
  cli.add_option("--image-id", options.image_id, "image to fetch, hexadecimal")
      ->excludes(descriptor);
  cli.add_option("--epoch", options.epoch, "epoch of the image")->capture_default_str();
  cli.add_option("--server", options.server, "memserver's MAC address; default: ask by broadcast");
  cli.add_option(
      "--hash-root", options.hash_root,
      "root of the image's hash tree, hexadecimal: pages that do not fit it are refused; "
      "default: the descriptor's");
  cli.add_option("--socket", options.socket, "unix socket where guests hand over userfaultfds")
      ->required();
  cli.add_option("--presence-dir", options.presence_dir,
                 "where presence bitmaps lie; default: SOCKET.d");
  cli.add_option("--prefetch", options.prefetch_pages,
                 "most neighbour pages to ask for with a fault: as many when faults come in a row")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  cli.add_option("--prefetch-list", options.prefetch_list,
                 "file of pages to fetch once a guest is there: 17 or 0x20-0x3f, one a line");
  cli.add_option(
      "--working-set", options.working_set,
      "file of pages that earlier clones had, as --record writes it: given to each guest "
      "before it asks, ahead of what it has touched");
  cli.add_option("--record", options.record,
                 "write the pages that clones had here, in their order, to this file");
  cli.add_flag("!--no-keep", options.keep,
               "keep no pages on this host for clones that come later: saves their memory");
  cli.add_option("--buffer", options.buffer_pages, "pages of the arrival buffer")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  cli.add_option("--max-guests", options.max_guests, "clones at once")->capture_default_str();
  cli.add_option(
      "--guest-uid", options.guest_uids,
      "a user who may connect to the socket beside memtap's own and root, by number; may "
      "be repeated. The socket's mode is 0666 then");
  cli.add_option("--give-up", options.give_up_s,
                 "seconds of a silent memserver after which faults fail with an error; one page "
                 "that a live memserver does not deliver fails after three times as long")
      ->check(CLI::Range(0.01, 86400.0))
      ->capture_default_str();
  cli.add_option("--max-image-gib", options.max_image_gib,
                 "refuse a larger image that a memserver announces")
      ->check(CLI::Range(1, 1 << 14))
      ->capture_default_str();
  cli.add_option("--min-rto", options.min_rto_ms, "shortest retry time-out, in milliseconds")
      ->check(CLI::Range(0.01, 500.0))
      ->capture_default_str();
}

std::string name_of(const TapImage& image) {
  return fmt::format("image {:016x} epoch {}", image.image_id, image.epoch);
}

Result<TapImage> image_of(const TapOptions& options) {
  TapImage image{.image_id = 0, .epoch = options.epoch, .server = std::nullopt};
  if (!options.descriptor.empty()) {
    auto described = image_of_descriptor(options.descriptor);
    if (!described) return described;
    image = std::move(*described);
  } else {
    const auto id = parse_number(options.image_id, 16);
    if (!id || *id == 0)
      return fail(EINVAL, fmt::format("--image-id \"{}\": not a 64-bit hexadecimal number above 0; "
                                      "--descriptor FILE names an image too",
                                      options.image_id));
    image.image_id = *id;
  }
  for (const auto& [file, into] : {std::pair{&options.prefetch_list, &image.prefetch},
                                   std::pair{&options.working_set, &image.working_set}}) {
    if (file->empty()) continue;
    auto list = read_page_list(*file);
    if (!list) return std::unexpected(list.error());
    *into = std::move(*list);
  }
  const auto key = read_key(options);
  if (!key) return std::unexpected(key.error());
  if (*key) image.key = *key;
  if (!options.hash_root.empty()) {
    if (!from_hex(options.hash_root, image.root.emplace()))
      return fail(EINVAL, fmt::format("--hash-root {}: not {} hexadecimal digits",
                                      options.hash_root, 2 * sizeof(Hash)));
  }
  if (!options.server.empty()) {
    image.server = parse_mac(options.server);
    if (!image.server)
      return fail(EINVAL, fmt::format("--server {}: not a MAC address", options.server));
  }
  return image;
}

}  // namespace snowfabric
