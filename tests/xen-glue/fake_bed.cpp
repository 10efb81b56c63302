// SPDX-License-Identifier: BSD-3-Clause
#include "tests/xen-glue/bed.hpp"
#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {

Bed make_bed() {
  static FakeXen xen;
  xen.add(DomId{1}, 64 * 256, 2, 2).cpus = {{}};
  xen.store["/local/domain/1/memory/static-max"] = "65536";
  return {.calls = xen, .domain = DomId{1}, .nobody = DomId{9}, .beyond = {64 * 256}};
}

}  // namespace snowfabric::xen::test
