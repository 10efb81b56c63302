// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <atomic>
#include <functional>

#include "fabric/client_engine.hpp"
#include "fabric/eth_port.hpp"
#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/host_loop.hpp"
#include "memtap-dpdk/port_stats.hpp"
#include "pmd-config/port.hpp"

namespace snowfabric {

/// Memtap's poll loop: frames and faults to the engine, its frames to the port, pages to the host's
/// clones. One lcore runs it.
class ClientWorker {
 public:
  /// Control work between turns, on the same lcore: guests that come and go, state changes.
  using Control = std::function<void(Nanos now)>;
  static constexpr Nanos kControlInterval = std::chrono::milliseconds{1};
  static constexpr Nanos kQuietInterval = std::chrono::milliseconds{100};  ///< when nothing happens

  /// @param rx_loss  share of received frames to lose on purpose, from the seed
  /// @param seal     of every frame; nullptr: they go in the clear
  ClientWorker(ClientEngine& engine, const Port& port, double rx_loss, std::uint64_t seed,
               Seal* seal = nullptr);
  ClientWorker(const ClientWorker&) = delete;
  ClientWorker& operator=(const ClientWorker&) = delete;
  ~ClientWorker() { rte_pktmbuf_free(spare_); }

  /// From now on pages go to this host's clones.
  /// @param guest_fd      readable when a guest has faults
  /// @param for_siblings  what other hosts may have; nullptr: nothing
  void serve(Host& host, int guest_fd, const RepairSource* for_siblings = nullptr) noexcept;

  /// Until `stop`; then says BYE to the server.
  void run(const std::atomic<bool>& stop, const IdleConfig& idle, const Control& control) noexcept;

  /// One turn of the loop. @return frames and faults seen, frames sent
  unsigned turn(Nanos now) noexcept;

  [[nodiscard]] const ClientPortStats& stats() const noexcept { return stats_; }
  [[nodiscard]] const DropCounters& drops() const noexcept { return loop_.drops(); }

 private:
  unsigned receive(Nanos now) noexcept;
  void on_frame(const rte_mbuf& mbuf, Nanos now) noexcept;
  unsigned send(Nanos now) noexcept;
  void enqueue(std::size_t size) noexcept;
  void say_bye() noexcept;

  ClientEngine& engine_;
  HostLoop loop_;
  const Port& port_;
  LossyPort<EthPort> queue_;
  Seal* seal_;
  std::array<int, 2> wait_fds_;  // port, guests
  TxTail<> tail_;
  rte_mbuf* spare_ = nullptr;  // for the next frame: the engine must not decide in vain
  GatherBuffer gather_;
  OpenBuffer opened_;
  unsigned nb_undrained_ = 0;  // turns that left frames in the receive ring
  Nanos next_control_ = kNever;
  Nanos busy_until_ = kNever;
  bool slept_ = false;
  ClientPortStats stats_;
};

}  // namespace snowfabric
