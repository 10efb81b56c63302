// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <atomic>
#include <memory>

#include "fabric/eth_port.hpp"
#include "fabric/idle.hpp"
#include "pmd-config/port.hpp"
#include "tools/load_control.hpp"
#include "tools/load_trial.hpp"

namespace snowfabric::bench {

/// The server's end of a load: does what the members' end says, until it is stopped. One lcore.
class LoadServer {
 public:
  LoadServer(const Port& port, std::uint64_t seed) : port_{port}, image_{seed} {}

  void run(const std::atomic<bool>& stop, const IdleConfig& idle);
  [[nodiscard]] std::uint64_t nb_trials() const noexcept { return nb_trials_; }
  [[nodiscard]] std::uint64_t nb_bad() const noexcept { return nb_bad_; }  ///< control frames
  [[nodiscard]] std::uint64_t nb_foreign() const noexcept { return nb_foreign_; }

 private:
  unsigned turn(Nanos now);
  void on_mbuf(const rte_mbuf& mbuf, Nanos now);
  void on_control(const LoadFrame& asked, const MacAddr& src, Nanos now);
  [[nodiscard]] unsigned send(Nanos now) noexcept;

  const Port& port_;
  EthPort queue_{port_.queue()};
  LoadImage image_;
  std::unique_ptr<LoadTrial> trial_;
  TxTail<> tail_;
  GatherBuffer gather_;
  std::uint64_t nb_trials_ = 0, nb_bad_ = 0, nb_foreign_ = 0;
};

}  // namespace snowfabric::bench
