// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/prng.hpp"
#include "fabric/base/time.hpp"
#include "fabric/client_engine.hpp"
#include "fabric/stats.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

/// Pages that a host may hand on: whole, and where no guest can write.
class RepairSource {
 public:
  virtual ~RepairSource() = default;
  /// @pre page is in the image, as everywhere below
  [[nodiscard]] virtual bool knows(Gfn page) const noexcept = 0;
  /// @pre knows(page) @return nothing: it is all zero
  [[nodiscard]] virtual std::optional<std::span<const std::byte, kPageSize>> bytes(
      Gfn page) const noexcept = 0;
  /// @pre it is all zero @return it and zero pages around it
  [[nodiscard]] virtual PageRange zero_run(Gfn page) const noexcept = 0;
};

/// What a host sends to its siblings when they ask for pages that a silent server owes them. Who
/// has a page answers after a random time, to all, unless somebody else did. No I/O, no clock, no
/// allocation. One lcore, that of the client engine. Source: the repairs of SRM (Floyd et al.,
/// IEEE/ACM ToN 1997); docs/wire-format.md, section 13.
class Repairs {
 public:
  static constexpr Nanos kSpread = std::chrono::milliseconds{2};
  /// What was sent is under way so long, whoever asks again.
  static constexpr Nanos kUnderWay = std::chrono::microseconds{500};
  /// Between two frames, of others too: 0.8 Gbit/s of pages at MTU 9000, by all hosts that hear
  /// each other in time. No flow control rules these.
  static constexpr Nanos kSpacing = std::chrono::microseconds{40};
  static constexpr std::size_t kMaxPages = 256;   ///< to be answered, or answered just now
  static constexpr std::size_t kMaxLooks = 1024;  ///< pages of one REQUEST looked at

  /// @param engine  of this host, whose name it speaks in. Borrowed
  explicit Repairs(ClientEngine& engine) noexcept;

  /// @param source  borrowed; nullptr: nothing is answered
  void serve(const RepairSource* source) noexcept;

  /// A sibling's REQUEST that the client engine let pass.
  void on_request(const wire::Frame& frame, Nanos now) noexcept;
  /// A PAGE that the client engine let pass, and its page. @pre the page is in the image
  void on_page(const wire::Frame& frame, Nanos now) noexcept;
  /// ZEROS that it believed. @param pages  in the image @param flags  of the frame
  void on_zeros(PageRange pages, std::uint8_t flags, Nanos now) noexcept;

  [[nodiscard]] bool has_output(Nanos now) const noexcept { return deadline() <= now; }
  /// Writes the next frame, if one is due. @param out  a page whose frame does not fit is not sent
  /// @return its bytes
  std::size_t next(std::span<std::byte> out, Nanos now) noexcept;
  /// When next() has something to do; Nanos::max(): never, as far as is known.
  [[nodiscard]] Nanos deadline() const noexcept { return std::max(due_at_, free_at_); }

 private:
  struct Entry {
    Gfn page{};
    Nanos at{0};        // to be answered then; or, once it was, to be forgotten
    bool sent = false;  // by us or by somebody
    wire::Priority priority{};
  };

  [[nodiscard]] bool add(Gfn page, const wire::WantEntry& want, Nanos now) noexcept;
  using PageBytes = std::span<const std::byte, kPageSize>;
  [[nodiscard]] bool matters(std::uint8_t flags) const noexcept;
  [[nodiscard]] PageBytes kept_bytes(Gfn page) const noexcept;
  void on_sent(PageRange pages, std::uint8_t flags, Nanos now) noexcept;
  [[nodiscard]] Entry* room_for(wire::Priority priority) noexcept;
  void mark_sent(Entry& entry, Nanos now) noexcept;
  [[nodiscard]] Entry* find(Gfn page) noexcept;
  void forget_old(Nanos now) noexcept;
  void find_due() noexcept;
  std::size_t write_next(std::span<std::byte> out, Nanos now) noexcept;
  std::size_t write_page(std::span<std::byte> out,
                         std::span<const std::byte, kPageSize> bytes) noexcept;

  const ClientEngine& engine_;
  ClientStats& stats_;
  const RepairSource* source_ = nullptr;
  Prng prng_;
  std::array<Entry, kMaxPages> entries_;
  std::size_t nb_entries_ = 0;
  Gfn page_{};                // being sent in fragments
  std::size_t fragment_ = 0;  // the next of it; 0: none is
  std::uint32_t crc32c_ = 0;
  Nanos due_at_ = Nanos::max();  // of the first entry, or of the next fragment
  Nanos free_at_{0};
};

}  // namespace snowfabric
