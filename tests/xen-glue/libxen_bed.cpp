// SPDX-License-Identifier: BSD-3-Clause
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "tests/xen-glue/bed.hpp"
#include "xen-glue/libxen_calls.hpp"

namespace snowfabric::xen::test {

Bed make_bed() {
  static const auto xen = open_libxen();
  const char* domain = std::getenv("SF_XEN_DOMID");
  if (!xen || domain == nullptr) {
    std::cerr << (xen ? "SF_XEN_DOMID is not set"
                      : xen.error().what + ": " + std::strerror(xen.error().errnum))
              << '\n';
    std::exit(2);
  }
  return {.calls = **xen,
          .domain = DomId{static_cast<std::uint16_t>(std::strtoul(domain, nullptr, 10))},
          .nobody = DomId{30'000}};
}

}  // namespace snowfabric::xen::test
