// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"
#include "memserver-dpdk/control.hpp"
#include "memserver-dpdk/image.hpp"
#include "pmd-config/cpu_mask.hpp"
#include "pmd-config/telemetry.hpp"

namespace snowfabric {

/// What is to be served.
struct Frozen {
  std::vector<Image> images;
  std::vector<std::string> names;  ///< of the images, for people
  Snapshot freeze;                 ///< how long what took, if a parent was frozen
};

/// @return EINVAL: the options name nothing to serve, or what cannot go together
[[nodiscard]] Result<void> check_sources(const ServerOptions& options);

/// Maps and scans every image file, with progress on stderr. Before EAL init, as Image::open.
[[nodiscard]] Result<Frozen> open_files(const ServerOptions& options);

/// Freezes the parent behind `options.qemu`, writes its descriptor, then scans its memory: memtaps
/// and clones start meanwhile and wait. After EAL init. If it fails there is no descriptor.
/// @param server  where memtaps find this memserver
/// @param cpus    for the scan and for the thread that sets pages aside
/// @return as freeze_qemu, write_descriptor and Image::open
[[nodiscard]] Result<Frozen> freeze_parent(const ServerOptions& options, const MacAddr& server,
                                           const CpuMask& cpus);

}  // namespace snowfabric
