// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "descriptor/descriptor.hpp"
#include "fabric/base/result.hpp"
#include "memserver-dpdk/image.hpp"

namespace snowfabric {

struct QemuFreezeOptions {
  std::string qmp_path;                     ///< a monitor of the parent that nobody else holds
  std::optional<std::uint64_t> image_id{};  ///< as ImageOptions
  std::uint32_t epoch = 1;
  std::optional<int> progress_fd{};
};

/// A parent's memory and state as they were at one instant. The parent runs on.
struct FrozenParent {
  Image image;            ///< of a sealed memfd: nothing can change it, nor does the parent's death
  Descriptor descriptor;  ///< complete but for the memserver's address
  std::chrono::microseconds pause{0};  ///< the vCPUs stood still, as QEMU says
  std::chrono::milliseconds drain{0};  ///< until all memory had come
};

/// Freezes a running QEMU by its own background snapshot and takes its memory in. Nothing of the
/// parent is changed for longer than the call. Control path: seconds, for QEMU hands its memory
/// over page by page. Before rte_eal_init, like Image::open.
/// @return EROFS: the VM has a writable disk, which is not frozen; EREMOTEIO: QEMU refused, with
///         its words; ENOTSUP: a RAM that QEMU cannot write-protect; as Qmp and the stream reader
[[nodiscard]] Result<FrozenParent> freeze_qemu(const QemuFreezeOptions& options);

}  // namespace snowfabric
