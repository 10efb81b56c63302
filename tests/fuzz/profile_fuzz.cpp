// SPDX-License-Identifier: BSD-3-Clause
// Any bytes as a profile: refused with a reason, or every value in its bounds, and EAL arguments of
// it.
#include <cstddef>
#include <cstdint>
#include <span>

#include "pmd-config/eal_args.hpp"
#include "pmd-config/profile.hpp"
#include "tests/fuzz/fuzz_file.hpp"

namespace {

using namespace snowfabric;
using fuzz::check;

void check_bounds(const Profile& profile) {
  check(profile.mtu <= profile.max_mtu && profile.max_mtu <= 65535);
  check(profile.mtu != 0 || profile.mtu_by == MtuBy::kKernel);
  check(profile.nb_mbufs >= profile.nb_rxd + profile.nb_txd + 64U);
  check(profile.rate_initial_gbps > 0 && profile.rate_initial_gbps <= profile.rate_max_gbps);
  check(to_string(profile.multicast) != "");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static fuzz::File file;
  const auto profile = load_profile(file.holding({data, size}));
  if (!profile) {
    check(profile.error().errnum > 0 && !profile.error().what.empty());
    return 0;
  }
  check_bounds(*profile);
  const auto args = eal_args({.profile = *profile,
                              .iface = "eth0",
                              .mtu = profile->max_mtu,
                              .lcores = "",
                              .file_prefix = "",
                              .extra_args = {}});
  check(args ? !args->empty() : args.error().errnum > 0);
  return 0;
}
