// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/base/xen_domain.hpp"
#include "xen-glue/domain.hpp"

/// The shell of a clone: a domain that xl makes with little memory, and that gets the parent's
/// pages as evicted ones and its state. No more of them are ever populated at once than a batch.
/// All control path.
namespace snowfabric::xen {

/// RAM that xl gives a shell.
inline constexpr std::uint64_t kShellPages = 4096;

/// A kernel for xl to load, which never runs. Source of the format: the ELF specification, and
/// XEN_ELFNOTE_PHYS32_ENTRY of xen/elfnote.h.
[[nodiscard]] std::vector<std::byte> shell_kernel();

/// The xl configuration of a shell: a PVH domain with the vCPUs and, for Xen's tables, the size of
/// the parent. Lines behind it override.
[[nodiscard]] std::string shell_config(const std::string& name, const std::string& kernel,
                                       std::uint64_t nb_pages, const DomainState& parent);

/// Makes a domain of shell_config(), created paused and never run, a clone without its pages but
/// for those of the guest's bitmap, which it has with any content.
/// @param nb_pages  of the parent's RAM
/// @param progress  called with how many of them there are
/// @return EBUSY: Xen has no memory for a batch, or refuses to evict a page; or what a call
/// reported
[[nodiscard]] Result<void> make_shell(Domain domain, std::uint64_t nb_pages,
                                      const DomainState& parent,
                                      const std::function<void(std::uint64_t)>& progress);

}  // namespace snowfabric::xen
