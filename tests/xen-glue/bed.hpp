// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen::test {

/// A domain to try every call on: PVH, paused, never run, with at least 64 MiB. The contract test
/// is linked with a bed of the fake and, in a dom0, with a bed of the real Xen.
struct Bed {
  XenCalls& calls;
  DomId domain;
  DomId nobody;           ///< no such domain
  Gfn first{0x1000};      ///< of pages with nothing in them
  Gfn hole{0x7000'0000};  ///< no page there
  Gfn beyond{0x4'0000};   ///< no page there, and the next, but there may be
};

[[nodiscard]] Bed make_bed();

}  // namespace snowfabric::xen::test
