// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_prefetch.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>

#include "fabric/base/counter.hpp"
#include "fabric/seal.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

inline constexpr std::size_t kBurst = 32;

/// What a poll loop drives. rx_burst() fills a prefix of the span with mbufs that the caller then
/// owns; tx_burst() takes a prefix over, the rest stays the caller's. Both return its length.
template <class P>
concept BurstPort = requires(P port, std::span<rte_mbuf*> burst) {
  { port.rx_burst(burst) } noexcept -> std::same_as<std::uint16_t>;
  { port.tx_burst(burst) } noexcept -> std::same_as<std::uint16_t>;
};

/// One queue pair of a started port. A value: copies drive the same queues, one lcore at a time.
struct EthPort {
  std::uint16_t port_id{};
  std::uint16_t queue_id{};

  std::uint16_t rx_burst(std::span<rte_mbuf*> burst) noexcept {
    return rte_eth_rx_burst(port_id, queue_id, burst.data(),
                            static_cast<std::uint16_t>(burst.size()));
  }
  std::uint16_t tx_burst(std::span<rte_mbuf*> burst) noexcept {
    return rte_eth_tx_burst(port_id, queue_id, burst.data(),
                            static_cast<std::uint16_t>(burst.size()));
  }
};
static_assert(BurstPort<EthPort>);

/// Frames on their way to a port, in order. What the port does not take stays here and goes first
/// next time: never sent twice, never dropped, never waited for.
template <std::size_t kCapacity = 256>
class TxTail {
 public:
  static_assert(kCapacity >= 1 && kCapacity <= UINT16_MAX);

  TxTail() = default;
  TxTail(const TxTail&) = delete;
  TxTail& operator=(const TxTail&) = delete;
  /// Frees what was not sent.
  ~TxTail() { clear(); }

  [[nodiscard]] std::size_t size() const noexcept { return nb_; }
  /// Frames that push() will still take: produce no more than this.
  [[nodiscard]] std::size_t room() const noexcept { return kCapacity - nb_; }

  /// Takes the frame over.
  /// @return false: full, the frame is still the caller's
  [[nodiscard]] bool push(rte_mbuf* frame) noexcept {
    if (nb_ == kCapacity) return false;
    frames_[nb_++] = frame;
    return true;
  }

  /// Offers everything to the port, once.
  /// @return frames the port took
  template <BurstPort P>
  std::uint16_t flush(P& port) noexcept {
    std::size_t nb_sent = 0;
    while (nb_sent < nb_) {
      const std::size_t nb_offered = std::min(nb_ - nb_sent, kBurst);
      const std::uint16_t nb_taken = port.tx_burst(std::span{frames_}.subspan(nb_sent, nb_offered));
      nb_sent += nb_taken;
      if (nb_taken == nb_offered) continue;
      back_pressure_.add(1);
      std::copy(frames_.begin() + static_cast<std::ptrdiff_t>(nb_sent),
                frames_.begin() + static_cast<std::ptrdiff_t>(nb_), frames_.begin());
      break;
    }
    nb_ -= nb_sent;
    return static_cast<std::uint16_t>(nb_sent);
  }

  /// Frees every frame kept.
  void clear() noexcept {
    rte_pktmbuf_free_bulk(frames_.data(), static_cast<unsigned>(nb_));
    nb_ = 0;
  }

  /// Flushes that found the port's ring full.
  [[nodiscard]] const Counter& back_pressure() const noexcept { return back_pressure_; }

 private:
  std::array<rte_mbuf*, kCapacity> frames_;
  std::size_t nb_ = 0;
  Counter back_pressure_;
};

/// Room for the longest frame behind its Ethernet header.
using GatherBuffer = std::array<std::byte, wire::kMaxSealedBytes - sizeof(wire::EthHdr)>;

/// Copies what the frame holds from `offset` on, as far as `out` goes. (rte_pktmbuf_read follows a
/// null pointer when pkt_len exceeds the sum of the segments.)
/// @return bytes copied
inline std::size_t copy_segments(const rte_mbuf& frame, std::size_t offset,
                                 std::span<std::byte> out) noexcept {
  std::size_t nb_copied = 0;
  for (const rte_mbuf* segment = &frame; segment != nullptr; segment = segment->next) {
    const std::size_t skipped = std::min<std::size_t>(offset, segment->data_len);
    const std::size_t length = std::min(segment->data_len - skipped, out.size() - nb_copied);
    std::memcpy(out.data() + nb_copied, rte_pktmbuf_mtod_offset(segment, const std::byte*, skipped),
                length);
    offset -= skipped;
    nb_copied += length;
  }
  return nb_copied;
}

/// The bytes behind the Ethernet header in one piece: in place when they lie in one segment, else
/// copied to `buffer`, because net_ring hands over the sender's header and page segments.
/// @return borrows from the mbuf or the buffer; empty for a frame without payload or too long for
/// us
[[nodiscard]] inline std::span<const std::byte> gather(const rte_mbuf& frame,
                                                       GatherBuffer& buffer) noexcept {
  constexpr std::size_t kHeader = sizeof(wire::EthHdr);
  if (frame.nb_segs == 1) {
    const auto* bytes = rte_pktmbuf_mtod(&frame, const std::byte*);
    return std::span{bytes, frame.data_len}.subspan(std::min<std::size_t>(kHeader, frame.data_len));
  }
  if (frame.pkt_len > kHeader + buffer.size()) return {};
  const std::size_t nb_read = copy_segments(frame, kHeader, buffer);
  // a driver whose pkt_len is not the sum of its segments gets its frame dropped, not trusted
  return std::span{buffer}.first(nb_read + kHeader == frame.pkt_len ? nb_read : 0);
}

/// Asks for a burst's mbufs themselves, both lines of each: another core wrote them last.
inline void prefetch_mbufs(std::span<rte_mbuf* const> burst) noexcept {
  for (const rte_mbuf* mbuf : burst) {
    rte_prefetch0(mbuf);
    rte_prefetch0(&mbuf->cacheline1);
  }
}

/// Asks for the first segment's bytes while the frame before it is worked on. A checksum meets each
/// line's miss in turn: over net_ring this made a page in one frame 15 % faster, in three 30 %. A
/// page segment (zero-copy) comes from memory; asking for that too was slower.
inline void prefetch_frame(const rte_mbuf& frame) noexcept {
  const auto* data = rte_pktmbuf_mtod(&frame, const std::byte*);
  for (std::size_t i = 0; i < frame.data_len; i += RTE_CACHE_LINE_SIZE) rte_prefetch0(data + i);
}

/// Copies the Ethernet header out.
/// @return false: the frame is shorter than one
[[nodiscard]] inline bool read_eth(const rte_mbuf& frame, wire::EthHdr& out) noexcept {
  std::array<std::byte, sizeof out> bytes;
  if (copy_segments(frame, 0, bytes) != bytes.size()) return false;
  std::memcpy(&out, bytes.data(), sizeof out);
  return true;
}

/// A port that loses received frames at random: fault injection (--rx-loss) at one receiver.
template <BurstPort P>
class LossyPort {
 public:
  /// @param probability  of losing a frame, 0..1
  /// @param seed         the same seed and the same frames give the same losses
  LossyPort(P port, double probability, std::uint64_t seed) noexcept
      : port_{port}, threshold_{threshold(probability)}, random_{seed} {}

  std::uint16_t rx_burst(std::span<rte_mbuf*> burst) noexcept {
    const std::uint16_t nb_rx = port_.rx_burst(burst);
    if (threshold_ == 0) return nb_rx;
    std::uint16_t nb_kept = 0;
    for (std::uint16_t i = 0; i < nb_rx; ++i) {
      if ((random_() >> 32U) < threshold_)
        rte_pktmbuf_free(burst[i]);
      else
        burst[nb_kept++] = burst[i];
    }
    rx_lost_.add(static_cast<std::uint64_t>(nb_rx - nb_kept));
    return nb_kept;
  }
  std::uint16_t tx_burst(std::span<rte_mbuf*> burst) noexcept { return port_.tx_burst(burst); }

  /// Frames lost on purpose.
  [[nodiscard]] const Counter& rx_lost() const noexcept { return rx_lost_; }

 private:
  /// Probability as a share of 2^32.
  static std::uint64_t threshold(double probability) noexcept {
    return static_cast<std::uint64_t>(std::clamp(probability, 0.0, 1.0) * 4294967296.0);
  }

  P port_;
  std::uint64_t threshold_;
  std::mt19937_64 random_;
  Counter rx_lost_;
};

}  // namespace snowfabric
