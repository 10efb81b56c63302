// SPDX-License-Identifier: BSD-3-Clause
// In place of libxen_calls.cpp where Xen's libraries are not there.
#include <cerrno>

#include "xen-glue/libxen_calls.hpp"

namespace snowfabric::xen {

Result<std::unique_ptr<XenCalls>> open_libxen() {
  return fail(ENOTSUP, "this program was built without Xen's libraries");
}

}  // namespace snowfabric::xen
