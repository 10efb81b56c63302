// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/eth_port.hpp"
#include "fabric/idle.hpp"
#include "memserver-dpdk/image.hpp"
#include "pmd-config/port.hpp"
#include "tools/bench_guest.hpp"

/// The limit our figures are ratios of: the frames of the fabric over the same port, with nothing
/// decided. No requests, no presence, no flow control; a page that is lost stays lost.
namespace snowfabric::bench {

/// Sends every page of an image once, in ascending order if no other is given, to its group; two a
/// frame where the MTU allows.
class BareSender {
 public:
  /// @param pages_per_s  pace; 0: as fast as the port takes them
  BareSender(const Image& image, const Port& port, TxMode mode, double pages_per_s);
  BareSender(const BareSender&) = delete;
  BareSender& operator=(const BareSender&) = delete;
  /// Frees what the port has not taken.
  ~BareSender();

  /// From now on in this order, which it borrows, one a frame, and again and again.
  void repeat(std::span<const std::uint32_t> order) noexcept {
    order_ = order;
    pairs_ = false;
  }

  /// Up to a burst. @return frames the port took
  std::uint16_t turn() noexcept;
  /// Whether the last page is with the port.
  [[nodiscard]] bool done() const noexcept;
  /// Until done(), or `stop`.
  void run(const std::atomic<bool>& stop, const IdleConfig& idle) noexcept;

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return next_page_; }
  [[nodiscard]] double seconds() const noexcept { return seconds_; }

 private:
  void fill() noexcept;
  void prefetch_crc() const noexcept;
  void prefetch_next(Gfn gfn) const noexcept;
  [[nodiscard]] rte_mbuf* next_frame(std::span<rte_mbuf* const> mbufs) noexcept;
  [[nodiscard]] std::size_t write_header(std::byte* out, bool pair) noexcept;
  void put_page(rte_mbuf& frame, rte_mbuf* segment) noexcept;
  [[nodiscard]] Gfn next_gfn() const noexcept {
    return Gfn{order_.empty() ? next_page_ : order_[place_]};
  }

  const Image& image_;
  const Port& port_;
  EthPort queue_;
  TxMode mode_;
  double pages_per_s_;
  std::size_t nb_fragments_;
  bool pairs_;
  wire::Identity identity_;
  MacAddr group_;
  rte_mbuf_ext_shared_info extbuf_{};
  std::span<const std::uint32_t> order_;
  std::array<rte_mbuf*, kBurst> burst_{};
  std::uint16_t nb_waiting_ = 0;  // built, at the front of burst_
  std::uint64_t next_page_ = 0;
  std::size_t place_ = 0;  // of the next page in order_
  std::size_t next_fragment_ = 0;
  std::uint32_t seq_ = 0;
  double seconds_ = 0;
};

/// Copies every page that comes into an arena and checks its checksum there.
class BareReceiver {
 public:
  BareReceiver(const Port& port, Arena& arena, std::size_t nb_fragments);

  /// Until every page came, `stop`, or nothing has come for `silence` after the first frame.
  void run(const std::atomic<bool>& stop, const IdleConfig& idle, Nanos silence) noexcept;

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }  ///< whole and right
  [[nodiscard]] std::uint64_t nb_bad() const noexcept { return nb_bad_; }      ///< wrong checksum
  [[nodiscard]] std::uint64_t nb_foreign() const noexcept { return nb_foreign_; }
  [[nodiscard]] std::uint64_t first_at() const noexcept { return first_at_; }  ///< TSC
  [[nodiscard]] std::uint64_t last_at() const noexcept { return last_at_; }    ///< TSC

 private:
  void take(const rte_mbuf& frame) noexcept;
  void take_page(const rte_mbuf& frame, const wire::PageBody& body, std::size_t offset) noexcept;

  const Port& port_;
  EthPort queue_;
  Arena& arena_;
  std::uint8_t all_fragments_;
  std::uint64_t current_page_ = ~std::uint64_t{0};
  std::uint8_t have_ = 0;  // fragments of the current page
  std::uint64_t nb_pages_ = 0, nb_bad_ = 0, nb_foreign_ = 0;
  std::uint64_t first_at_ = 0, last_at_ = 0;
};

/// Frees what waits in a port, so that the next run begins with empty rings.
void drain(const Port& port) noexcept;

}  // namespace snowfabric::bench
