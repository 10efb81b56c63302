// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/xen_domain.hpp"

namespace snowfabric::xen {

inline constexpr std::uint32_t kMaxVcpus =
    128;  ///< of HVM. Source: HVM_MAX_VCPUS, hvm_info_table.h
inline constexpr std::size_t kMaxContextBytes = std::size_t{8} << 20U;
inline constexpr std::size_t kMaxEagerPages = 1U << 16U;

/// The state's sections of a descriptor: kXenContext, kXenDomain.
[[nodiscard]] std::vector<Section> sections_of(const DomainState& state);

/// Survives any bytes.
/// @return EINVAL: the descriptor is not of a Xen domain; EBADMSG: a section is malformed, or the
///         named field outside its bounds
[[nodiscard]] Result<DomainState> state_of(const Descriptor& descriptor);

}  // namespace snowfabric::xen
