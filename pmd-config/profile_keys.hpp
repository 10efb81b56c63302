// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <toml++/toml.h>

#include "fabric/base/result.hpp"
#include "pmd-config/profile.hpp"

namespace snowfabric {

/// Writes every key of one profile file over `profile`, whose `file` names it in errors.
/// @return EINVAL with file:line and the key: unknown, wrong type or out of range
[[nodiscard]] Result<void> apply_keys(const toml::table& table, Profile& profile);

}  // namespace snowfabric
