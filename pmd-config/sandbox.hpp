// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

#include "fabric/base/result.hpp"
#include "pmd-config/capabilities.hpp"

namespace snowfabric {

/// Gives up, for all threads and for good, what the process does not need once it has started
/// (docs/adr/0013): all capabilities but some, new privileges by execve(2), system calls that it
/// never makes, and core dumps. A call that is forbidden does nothing, returns EPERM, is counted,
/// and the first of each name has a line on stderr. Once, on the control path; no thread may be
/// starting.
/// @param wanted  capabilities to keep, of those the process has. With CAP_BPF bpf(2) stays, too
/// @return the capabilities that are left; EBUSY: a thread blocks signals, and so keeps its own;
///         what /proc, the kernel or libseccomp reported. Part of it may be given up by then: end
///         the process
[[nodiscard]] Result<Capabilities> enter_sandbox(Capabilities wanted);

/// Whether enter_sandbox() has succeeded. Any thread.
[[nodiscard]] bool is_sandboxed() noexcept;
/// Forbidden calls since. Any thread.
[[nodiscard]] std::uint64_t nb_forbidden_calls() noexcept;

}  // namespace snowfabric
