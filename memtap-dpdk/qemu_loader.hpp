// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/base/unique_fd.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/process_guest.hpp"
#include "memtap-dpdk/qemu_guest.hpp"

namespace snowfabric {

/// The block that comes by userfaultfd: the largest.
[[nodiscard]] const RamBlock& ram_of(const qemu::State& state) noexcept;

/// Starts a QEMU whose RAM comes by userfaultfd: the source of a precopy migration that carries all
/// but the largest RAM block. It asks for the pages of the others (ROMs, some hundreds), sends them
/// with the device state, and leaves when QEMU has read it all.
/// Source: docs/qemu-stream.md section 4.
class QemuLoader final : public ProcessGuest {
 public:
  /// @param seed  borrowed
  QemuLoader(std::uint32_t id, QemuAttachment attachment, PresenceFile presence,
             const QemuSeed& seed);

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  FailMeans fail(Gfn page) noexcept override;
  [[nodiscard]] bool ends_with_socket() const noexcept override { return true; }
  /// QEMU refuses half a stream and exits: nothing wrong is read.
  [[nodiscard]] bool survives_memtap() const noexcept override { return true; }
  [[nodiscard]] bool is_loader() const noexcept override { return true; }
  [[nodiscard]] int fault_fd() const noexcept override { return socket(); }

 private:
  [[nodiscard]] const RamBlock& left_out() const noexcept { return ram_of(seed_.state); }
  [[nodiscard]] std::span<std::byte, kPageSize> room_of(Gfn page) noexcept;
  Install fill(PageRange pages, const std::byte* bytes) noexcept;
  void compose() noexcept;
  void flush() noexcept;

  const QemuSeed& seed_;
  UniqueFd requester_;
  std::vector<std::byte> pages_;  ///< of the other blocks, in their order
  std::uint64_t nb_missing_;
  Gfn next_{};                  ///< page to ask for
  std::vector<std::byte> out_;  ///< the stream, from sent_ on not yet taken by the socket
  std::size_t sent_ = 0;
};

}  // namespace snowfabric
