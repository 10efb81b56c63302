// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "descriptor/descriptor.hpp"

namespace snowfabric {

/// Holds a descriptor to every bound of descriptor.hpp: what a reader must not let through is what
/// a writer must not write.
/// @param errnum  of the error: EINVAL for the writer, EBADMSG for the reader
/// @return `errnum` and the field; ENOTSUP: a section of unknown type that is not optional; EFBIG:
///         a section larger than a descriptor can be
[[nodiscard]] Result<void> check_bounds(const Descriptor& descriptor, int errnum);

}  // namespace snowfabric
