// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace snowfabric {

/// A process's strings of /proc/PID/cmdline and the like. @return none: it is gone, or not ours
[[nodiscard]] std::vector<std::string> strings_of(pid_t pid, std::string_view what);

/// The value that an environment variable had when the process began; empty: it had none.
[[nodiscard]] std::string variable_of(pid_t pid, std::string_view name);

}  // namespace snowfabric
