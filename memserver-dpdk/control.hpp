// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/worker.hpp"
#include "pmd-config/app.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric {

struct ServerOptions : AppOptions {
  std::vector<std::string> images;
  std::vector<std::string> image_ids;  ///< hexadecimal, one an image, or none
  std::uint32_t epoch = 1;
  bool push = false;
  double push_gbps = 0;  ///< 0: all that demand leaves
  bool copy = false;
  bool hash_tree = false;
  double rate_gbps = 0;      ///< 0: the profile's
  double max_rate_gbps = 0;  ///< 0: the profile's
  double end_game = EndGameConfig{}.enter;
  unsigned client_timeout_s = 5;
  unsigned max_clients = 4096;  ///< of each image
  std::string info_file;
  std::string qemu;                  ///< QMP socket of a parent to freeze instead of serving files
  std::string xen;                   ///< a domain of this host to freeze, likewise
  std::optional<xen::Keep> xen_ram;  ///< with `xen`; none: as there is room
  std::string descriptor_file;       ///< of the parent: where it is written
  std::string free_pages;            ///< with `qemu`: socket of the guest's port for free pages
  std::string memtap;                ///< with `qemu`: socket of the memtap that serves it, a clone
  std::string checkpoint_file;       ///< where the frozen image is written, while it is served
  std::string restore;               ///< such a file, to be served again
  bool detach = false;  ///< with `qemu`: copy its memory, so that it can be frozen again
};

/// Whether there is a parent to freeze, instead of files to serve.
[[nodiscard]] inline bool has_parent(const ServerOptions& options) {
  return !options.qemu.empty() || !options.xen.empty();
}

void add_server_options(CLI::App& cli, ServerOptions& options);

[[nodiscard]] ServerConfig engine_config(const ServerOptions& options, const Profile& profile,
                                         unsigned mtu_bytes);

/// Runs the memserver until a signal. @return what stopped it from starting
[[nodiscard]] Result<void> serve(const ServerOptions& options);

}  // namespace snowfabric
