// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>

#include <CLI/CLI.hpp>
#include <spdlog/spdlog.h>

#include "memserver-dpdk/control.hpp"
#include "memserver-dpdk/parent_guard.hpp"

int main(int argc, char** argv) {
  using namespace snowfabric;
  if (const auto status = guard_parent({argv, static_cast<std::size_t>(argc)})) return *status;
  CLI::App cli{"Serves frozen memory images to memtaps by Ethernet multicast.", "memserver-dpdk"};
  ServerOptions options;
  add_server_options(cli, options);
  if (const auto status = parse_command_line(cli, argc, argv, options)) return *status;
  start_logging("memserver", options.log_level);
  install_sigbus_handler();
  const auto result = serve(options);
  if (!result) spdlog::error("{}: {}", result.error().what, std::strerror(result.error().errnum));
  spdlog::shutdown();
  return result ? 0 : 1;
}
