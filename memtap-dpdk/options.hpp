// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"
#include "fabric/hash_tree.hpp"
#include "memtap-dpdk/qemu_guest.hpp"
#include "memtap-dpdk/xen_guest.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

struct TapOptions : AppOptions {
  std::string descriptor;  ///< file; names image, epoch and server, and is needed for QEMU clones
  std::string image_id;    ///< hexadecimal
  std::uint32_t epoch = 1;
  std::string server;     ///< MAC address; empty: ask by broadcast
  std::string hash_root;  ///< hexadecimal; empty: the descriptor's
  std::string socket;
  std::string presence_dir;  ///< empty: SOCKET.d
  std::uint32_t prefetch_pages = 16;
  std::string prefetch_list;
  std::string working_set;  ///< file to load; empty: the descriptor's
  std::string record;       ///< file to write the working set to
  bool keep = true;         ///< pages for clones that come later
  std::uint32_t buffer_pages = 256;
  std::uint32_t max_guests = 64;
  std::vector<uid_t> guest_uids;  ///< who may connect beside memtap's own user and root
  double give_up_s = 10;
  std::uint64_t max_image_gib = 256;
  double min_rto_ms = 1;
};

void add_tap_options(CLI::App& cli, TapOptions& options);

/// The image to fetch, and what clones start from if there is a descriptor.
struct TapImage {
  std::uint64_t image_id = 0;
  std::uint32_t epoch = 0;
  std::optional<MacAddr> server;
  std::optional<GroupKey> key{};   ///< none: frames go in the clear
  std::optional<Hash> root{};      ///< of the hash tree; none: pages are taken as they come
  std::uint64_t nb_pages = 0;      ///< 0: the memserver says it
  std::optional<QemuSeed> qemu{};  ///< for clones that are QEMUs
  std::optional<XenSeed> xen{};    ///< for clones that are Xen domains
  std::vector<PageRange> prefetch{}, working_set{};
  std::vector<PageRange> zeros{};  ///< known to be zero, or to be read as such, before anybody asks
};

/// For people.
[[nodiscard]] std::string name_of(const TapImage& image);

/// @return EINVAL: an option is wrong or missing; or as read_descriptor
[[nodiscard]] Result<TapImage> image_of(const TapOptions& options);

}  // namespace snowfabric
