// SPDX-License-Identifier: BSD-3-Clause
#include <cstdio>

#include <gtest/gtest.h>

#include "pmd-config/eal.hpp"

/// Starts EAL once for all tests, with one loopback ring port.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  snowfabric::EalConfig config;
  config.program = "eal_test";
  config.extra_args = {"--no-huge",       "--no-shconf", "--no-pci", "--no-telemetry",
                       "--lcores=0",      "-m",          "64",       "--log-level=error",
                       "--vdev=net_ring0"};
  const auto eal = snowfabric::Eal::init(config);
  if (!eal) {
    std::fprintf(stderr, "%s\n", eal.error().what.c_str());
    return 1;
  }
  return RUN_ALL_TESTS();
}
