// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/server_engine.hpp"
#include "fabric/token_bucket.hpp"
#include "tools/load_control.hpp"

namespace snowfabric::bench {

/// Random pages, the same again and again: an image of any size in little memory.
class LoadImage {
 public:
  explicit LoadImage(std::uint64_t seed);

  [[nodiscard]] const std::byte* page(Gfn gfn) const noexcept {
    return bytes_.data() + gfn.value % kDistinct * kPageSize;
  }
  [[nodiscard]] std::uint32_t crc(Gfn gfn) const noexcept { return crcs_[gfn.value % kDistinct]; }

  static constexpr std::size_t kDistinct = 4096;

 private:
  std::vector<std::byte> bytes_;
  std::vector<std::uint32_t> crcs_;
};

/// One order of the members' end and what has become of it. Pages leave at the rate it says. Pure:
/// no I/O, no clock. One lcore.
class LoadTrial {
 public:
  /// A bare trial, which has no members that could time out, ends when nobody has asked so long.
  static constexpr Nanos kSilence = std::chrono::seconds{3};

  /// @param image  borrowed @param mtu_bytes  of the server's port @param mac  likewise
  LoadTrial(std::uint64_t id, const LoadOrder& order, const LoadImage& image,
            std::uint16_t mtu_bytes, const MacAddr& mac);
  LoadTrial(const LoadTrial&) = delete;
  LoadTrial& operator=(const LoadTrial&) = delete;

  /// A second call changes nothing.
  void go(Nanos now) noexcept;
  /// The members' end asked something.
  void hear(Nanos now) noexcept { heard_ = now; }
  /// Of the protocol, which a bare trial has not.
  void on_frame(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept {
    if (engine_) engine_->on_frame(frame, src, now);
  }
  /// The next frame, if it is time for one. @return false: not now
  [[nodiscard]] bool next(ServerTx& out, Nanos now) noexcept;
  /// Its headers, and pages behind them. @return bytes written @param out  room for such a frame
  [[nodiscard]] std::size_t write(const ServerTx& tx, std::span<std::byte> out) noexcept;
  /// The port has taken all that was written.
  void all_sent(Nanos now) noexcept;

  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] LoadReport report() const noexcept;
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;

 private:
  [[nodiscard]] bool next_bare(ServerTx& out, Nanos now) noexcept;
  [[nodiscard]] std::size_t write_frame(const ServerTx& tx,
                                        std::span<std::byte> out) const noexcept;
  [[nodiscard]] std::size_t write_header(const ServerTx& tx,
                                         std::span<std::byte> out) const noexcept;
  [[nodiscard]] bool is_over(Nanos now) const noexcept;

  std::uint64_t id_;
  LoadKind kind_;
  const LoadImage& image_;
  std::uint16_t mtu_bytes_;
  MacAddr mac_;
  std::uint64_t nb_pages_;
  Nanos length_;
  std::size_t nb_fragments_;
  bool pairs_;
  std::vector<std::uint32_t> crcs_;
  std::vector<std::uint64_t> zero_words_;
  ServerStats stats_;
  std::optional<ServerEngine> engine_;  // none: bare
  TokenBucket bucket_;                  // of a bare trial
  Gfn next_page_{};                     // likewise
  std::uint8_t next_fragment_ = 0;      // likewise
  std::uint32_t seq_ = 0;               // likewise
  LoadState state_ = LoadState::kReady;
  Nanos began_ = kNever, heard_ = kNever, took_{0};
  std::uint64_t nb_frames_ = 0, nb_bytes_ = 0, nb_tx_bytes_ = 0;
};

}  // namespace snowfabric::bench
