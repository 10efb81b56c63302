// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

#include "fabric/base/result.hpp"
#include "memserver-dpdk/qmp.hpp"

namespace snowfabric {

// What a QEMU must not have to be frozen, asked of it before anything is changed. Each as
// Qmp::execute beside what it names. Control path.

/// @return EROFS: the VM has a writable disk, or memory of a kind that is one. It goes on changing
///         under the parent, so that clones would see another one than they froze
[[nodiscard]] Result<void> refuse_writable_disks(Qmp& qmp);

/// @return ENOTSUP: somebody writes to the VM's RAM past QEMU, a vhost-user backend for instance:
///         neither its write protection nor its background snapshot could hold that writer up
[[nodiscard]] Result<void> refuse_foreign_writers(Qmp& qmp);

/// @return ENOTSUP: the guest may give pages back, which are gone from shared RAM then although
///         nobody writes them: an image of RAM left in place would lose them
[[nodiscard]] Result<void> refuse_returned_memory(Qmp& qmp);

/// RAM left in place has to be the first of QEMU's blocks, and no other may be shared: the stream
/// would leave it out.
/// @param nb_bytes  of all RAM that the preload library knows
/// @return ENOTSUP: it is in several backends, or is no backend
[[nodiscard]] Result<void> check_only_backend(Qmp& qmp, std::uint64_t nb_bytes);

}  // namespace snowfabric
