// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "descriptor/qemu_stream.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/stream_channel.hpp"

namespace snowfabric {

/// A parent's memory as it came by its migration stream: all blocks one behind the other in a
/// memfd that nothing can write any more.
class FrozenMemory {
 public:
  /// Blocks until the stream has ended.
  /// @param nb_live_pages  of the first block, if it does not come by the stream but is shared with
  ///                       the parent: its place in the file stays empty; else 0
  /// @param progress_fd    where to show how far it is
  /// @return as qemu::read_stream and StreamChannel::receive; EINVAL: the first block has another
  ///         size; or what the call named reported
  [[nodiscard]] static Result<FrozenMemory> take(const StreamChannel& channel,
                                                 std::uint64_t nb_live_pages,
                                                 std::optional<int> progress_fd);

  /// @param sealed  of all pages, in their order; nothing can write it
  explicit FrozenMemory(UniqueFd sealed) : file_{std::move(sealed)} {}

  /// To open it as a file, while this object lives.
  [[nodiscard]] std::string path() const;
  /// Of a parent whose memory came by take().
  [[nodiscard]] const qemu::State& state() const noexcept { return state_; }
  /// Appends the pages behind the first `nb_live_pages` that came as zeros. Control path.
  void append_zeros(std::uint64_t nb_live_pages, std::vector<PageRange>& out) const;

 private:
  FrozenMemory(UniqueFd file, qemu::State state)
      : file_{std::move(file)}, state_{std::move(state)} {}
  UniqueFd file_;
  qemu::State state_;
};

}  // namespace snowfabric
