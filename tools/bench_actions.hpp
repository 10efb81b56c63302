// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>

#include "fabric/base/result.hpp"
#include "pmd-config/app.hpp"
#include "tools/bench_install.hpp"
#include "tools/bench_load.hpp"
#include "tools/bench_ring.hpp"
#include "tools/bench_serve.hpp"
#include "tools/bench_sockets.hpp"

/// What bench-node does, each by the name of its subcommand. Results go to standard output.
namespace snowfabric::bench {

/// 256 MiB: far more than the caches hold, so that pages come from memory as in real use, and a run
/// is long against its start and end; small enough that eight receivers fit into one machine.
inline constexpr std::uint64_t kPages = 65536;
struct Options : AppOptions {
  RingOptions ring;
  ServeOptions serve;
  InstallOptions install;
  LoadOptions load;
  SocketOptions sockets;
  std::uint64_t nb_pages = kPages;
  std::string mode = "list", json_path, image_path, out_path, server_mac, image_id;
  bool zero_copy = false, gate = false;
  double pages_per_s = 0, timeout_s = 120;
};

/// Of all: puts together what options say in several. @return EINVAL: a mode that is none
[[nodiscard]] Result<void> complete_mode(Options& options);

/// In one process.
/// @{
[[nodiscard]] Result<void> ring(const Options& options);
[[nodiscard]] Result<void> serve(const Options& options);
[[nodiscard]] Result<void> install(const Options& options);
[[nodiscard]] Result<void> make_image(const Options& options);
/// @}

/// On one of several hosts.
/// @{
[[nodiscard]] Result<void> send(const Options& options);
[[nodiscard]] Result<void> receive(const Options& options);
[[nodiscard]] Result<void> socket_send(const Options& options);
[[nodiscard]] Result<void> socket_receive(const Options& options);
[[nodiscard]] Result<void> respond(const Options& options);
[[nodiscard]] Result<void> trips(const Options& options);
[[nodiscard]] Result<void> faults(const Options& options);
[[nodiscard]] Result<void> client(const Options& options);
[[nodiscard]] Result<void> receive_file(const Options& options);
[[nodiscard]] Result<void> load_server(const Options& options);
[[nodiscard]] Result<void> load_members(const Options& options);
/// @}

}  // namespace snowfabric::bench
