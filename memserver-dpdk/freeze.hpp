// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"
#include "fabric/seal.hpp"
#include "memserver-dpdk/control.hpp"
#include "memserver-dpdk/hashed_image.hpp"
#include "memserver-dpdk/image.hpp"
#include "pmd-config/cpu_mask.hpp"
#include "pmd-config/telemetry.hpp"

namespace snowfabric {

/// The file of a descriptor whose image is not served yet: it goes with this object, so that no
/// clone starts from it and waits in vain.
class UnservedDescriptor {
 public:
  UnservedDescriptor() = default;
  explicit UnservedDescriptor(std::string path) : path_{std::move(path)} {}
  UnservedDescriptor(UnservedDescriptor&& from) noexcept : path_{std::exchange(from.path_, {})} {}
  UnservedDescriptor& operator=(UnservedDescriptor&& from) noexcept {
    std::swap(path_, from.path_);
    return *this;
  }
  ~UnservedDescriptor();

  /// It is served from now on.
  void keep() noexcept { path_.clear(); }

 private:
  std::string path_;
};

/// What is to be served.
struct Frozen {
  std::vector<Image> images;
  std::vector<std::string> names;  ///< of the images, for people
  std::vector<ServedTree> trees;   ///< of the images, or none
  Snapshot freeze;                 ///< how long what took, if a parent was frozen
  UnservedDescriptor descriptor;
  std::optional<GroupKey> key{};  ///< of a restored image, by its descriptor
};

/// @return EINVAL: the options name nothing to serve, or what cannot go together
[[nodiscard]] Result<void> check_sources(const ServerOptions& options);

/// Maps and scans every image file, with progress on stderr. Before EAL init, as Image::open.
[[nodiscard]] Result<Frozen> open_files(const ServerOptions& options);

/// Freezes the parent that the options name, writes its descriptor, then scans its memory: memtaps
/// and clones start meanwhile and wait; with a hash tree it is scanned first, for its root is in
/// the descriptor. After EAL init. If it fails there is no descriptor.
/// @param key     of the group, for the descriptor; none: frames go in the clear
/// @param server  where memtaps find this memserver
/// @param cpus    for the scan and for the thread that sets pages aside
/// @param stop    set by a signal: gives up once the parent runs on, which a background snapshot
///                takes its time for: a QEMU 7.2 whose snapshot is broken off hangs; or when QEMU
///                falls silent
/// @return ECANCELED: stopped; as freeze_qemu, write_descriptor and Image::open
[[nodiscard]] Result<Frozen> freeze_parent(const ServerOptions& options,
                                           const std::optional<GroupKey>& key,
                                           const MacAddr& server, const CpuMask& cpus,
                                           const std::atomic<bool>& stop);

}  // namespace snowfabric
