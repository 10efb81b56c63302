// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "descriptor/qemu_stream.hpp"
#include "fabric/base/result.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/process_guest.hpp"

namespace snowfabric {

/// What memtap says to every QEMU clone of one descriptor before its first page. Made once.
struct QemuSeed {
  qemu::State state;
  std::vector<std::byte> preamble;  ///< the migration stream up to the first page

  /// @return as qemu::state_of and qemu::postcopy_preamble
  [[nodiscard]] static Result<QemuSeed> from(const Descriptor& descriptor);
};

/// An unmodified QEMU as the destination of a postcopy migration whose source is memtap. A page
/// counts as present once it is on its way: QEMU installs it atomically, and takes no page twice.
/// When memtap ends, or fail() is called, QEMU pauses the VM ("postcopy-paused") and keeps it; on a
/// new channel it is recovered: it says which pages it has, and until all is said no page goes in
/// and no fault comes out. Source: docs/qemu-stream.md.
class QemuGuest final : public ProcessGuest {
 public:
  /// Pages it may wait for; what it asks for beyond is read when some of them have come. A vCPU
  /// waits for one page, or with KVM's asynchronous faults some more; but one message may name a
  /// block.
  static constexpr std::size_t kMaxAsked = 256;

  /// @param seed  borrowed
  QemuGuest(std::uint32_t id, QemuAttachment attachment, PresenceFile presence,
            const QemuSeed& seed);

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  FailMeans fail(Gfn page) noexcept override;
  [[nodiscard]] bool ends_with_socket() const noexcept override { return true; }
  [[nodiscard]] bool survives_memtap() const noexcept override { return true; }
  [[nodiscard]] int fault_fd() const noexcept override { return socket(); }

 private:
  void recover() noexcept;
  void on_recovering(const qemu::Message& message) noexcept;
  void on_received(const qemu::Message& message) noexcept;
  void resume() noexcept;
  bool next_asked(Gfn& page) noexcept;
  std::optional<qemu::Message> next_message() noexcept;
  bool receive() noexcept;
  void give_up(std::string_view why) noexcept;
  bool on_fault(Gfn page) noexcept;
  Install fill(PageRange pages, const std::byte* bytes) noexcept;
  void send_page(Gfn page, const std::byte* bytes) noexcept;
  void end_if_complete() noexcept;
  void queue(std::span<const std::byte> bytes) noexcept;
  void flush() noexcept;

  static constexpr std::size_t kReceiveBytes = 4096;

  const QemuSeed& seed_;
  UniqueFd requester_;
  qemu::PageWriter writer_;
  qemu::ReturnPath return_path_;
  std::array<std::byte, kReceiveBytes> in_{};
  std::span<const std::byte> in_rest_;  ///< of in_, not parsed yet
  PageRange asked_{};                   ///< rest of the request being looked at
  std::size_t nb_asked_ = 0;            ///< pages it waits for
  std::vector<std::byte> out_;          ///< not yet taken by the socket, from sent_ on
  std::size_t sent_ = 0;
  std::uint64_t nb_missing_;   ///< pages neither sent nor there
  bool recovering_;            ///< not known yet which pages it has
  std::size_t nb_blocks_ = 0;  ///< while recovering: of so many blocks that is known
};

}  // namespace snowfabric
