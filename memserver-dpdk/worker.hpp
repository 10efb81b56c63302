// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "fabric/eth_port.hpp"
#include "fabric/server_engine.hpp"
#include "memserver-dpdk/image.hpp"
#include "memserver-dpdk/port_stats.hpp"
#include "pmd-config/port.hpp"

namespace snowfabric {

/// One image being served.
struct Served {
  Served(Image&& frozen, const ServerConfig& config);

  Image image;
  ServerStats stats;
  ServerEngine engine;
  rte_mbuf_ext_shared_info extbuf{};  ///< of every mbuf that points into the image
};

/// The memserver's poll loop: frames to engines, engines' frames to the port. One lcore runs it.
class ServerWorker {
 public:
  /// @param rx_loss  share of received frames to lose on purpose, from the seed
  /// @param seal     of every frame, with mode kCopy; nullptr: they go in the clear
  ServerWorker(std::span<const std::unique_ptr<Served>> served, const Port& port, TxMode mode,
               double rx_loss, std::uint64_t seed, Seal* seal = nullptr);
  ServerWorker(const ServerWorker&) = delete;
  ServerWorker& operator=(const ServerWorker&) = delete;
  ~ServerWorker();

  /// Until `stop`; then says BYE to every group.
  void run(const std::atomic<bool>& stop, const IdleConfig& idle) noexcept;

  /// One turn of the loop. @return frames received and sent
  unsigned turn(Nanos now) noexcept;

  [[nodiscard]] const ServerPortStats& stats() const noexcept { return stats_; }
  [[nodiscard]] const DropCounters& drops() const noexcept { return drops_; }

 private:
  unsigned receive(Nanos now) noexcept;
  void prefetch_wanted(const rte_mbuf& mbuf) const noexcept;
  void on_frame(const rte_mbuf& mbuf, Nanos now) noexcept;
  [[nodiscard]] Served* served_by(const wire::Frame& frame) const noexcept;
  unsigned send(Nanos now) noexcept;
  [[nodiscard]] bool send_one(Served& served, Nanos now) noexcept;
  [[nodiscard]] bool have_mbufs() noexcept;
  [[nodiscard]] rte_mbuf* take_mbuf() noexcept;
  void free_stock() noexcept;
  void enqueue(Served& served, const ServerTx& tx) noexcept;
  void attach_pages(Served& served, const ServerTx& tx, rte_mbuf& frame) noexcept;
  static void copy_page(const Served& served, Gfn page, std::size_t offset, std::size_t nb_bytes,
                        rte_mbuf& frame) noexcept;
  void attach_page(Served& served, Gfn page, std::size_t offset, std::size_t nb_bytes,
                   rte_mbuf& frame) noexcept;
  void say_bye() noexcept;
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;

  std::span<const std::unique_ptr<Served>> served_;
  const Port& port_;
  LossyPort<EthPort> queue_;
  TxMode mode_;
  Seal* seal_;
  TxTail<> tail_;
  std::size_t next_image_ = 0;  // whose turn it is to send
  // For the next frames, from next_mbuf_ on: engines must not decide in vain. A burst at a time and
  // in the pool's order: 10 % more pages/s over net_ring than one by one.
  std::array<rte_mbuf*, kBurst> stock_{};
  std::size_t next_mbuf_ = kBurst;
  GatherBuffer gather_;
  OpenBuffer opened_;
  ServerPortStats stats_;
  DropCounters drops_;
};

}  // namespace snowfabric
