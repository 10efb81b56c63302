// SPDX-License-Identifier: BSD-3-Clause
#include <cstring>

#include <CLI/CLI.hpp>
#include <spdlog/spdlog.h>

#include "memtap-dpdk/control.hpp"

int main(int argc, char** argv) {
  using namespace snowfabric;
  CLI::App cli{"Fills the page faults of this host's clones from a memserver.", "memtap-dpdk"};
  TapOptions options;
  add_tap_options(cli, options);
  if (const auto status = parse_command_line(cli, argc, argv, options)) return *status;
  start_logging("memtap", options.log_level);
  const auto result = tap(options);
  if (!result) spdlog::error("{}: {}", result.error().what, std::strerror(result.error().errnum));
  spdlog::shutdown();
  return result ? 0 : 1;
}
