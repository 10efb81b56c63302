// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>

#include "fabric/base/result.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen {

/// The calls by Xen's libraries, in a dom0. Control path.
/// @return ENOTSUP: this program was built without Xen; ENOENT, EACCES: /dev/xen or /proc/xen are
/// missing or not ours: no dom0, or not root
[[nodiscard]] Result<std::unique_ptr<XenCalls>> open_libxen();

}  // namespace snowfabric::xen
