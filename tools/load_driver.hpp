// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "fabric/base/prng.hpp"
#include "fabric/base/result.hpp"
#include "fabric/eth_port.hpp"
#include "fabric/idle.hpp"
#include "fabric/poll_loop.hpp"
#include "pmd-config/port.hpp"
#include "tools/load_control.hpp"
#include "tools/load_members.hpp"

namespace snowfabric::bench {

/// What a trial at one rate came to.
struct LoadTrialResult {
  double offered_bytes_per_s = 0, sent_bytes_per_s = 0, frames_per_s = 0;
  std::uint64_t nb_sent = 0, nb_bytes = 0;  ///< frames to the group, and bytes in them
  std::uint64_t nb_lost_worst = 0;          ///< frames the worst receiver lacks
  double nb_lost_mean = 0;                  ///< likewise, of all receivers
  std::uint64_t nb_bad_crc = 0;

  [[nodiscard]] double loss_worst() const noexcept {
    return nb_sent == 0 ? 1 : static_cast<double>(nb_lost_worst) / static_cast<double>(nb_sent);
  }
};

/// The members' end of a load: it says what is done, and has the members that receive. One lcore.
class LoadDriver {
 public:
  LoadDriver(const Port& port, const IdleConfig& idle, std::uint64_t seed,
             const std::atomic<bool>& interrupted);
  LoadDriver(const LoadDriver&) = delete;
  LoadDriver& operator=(const LoadDriver&) = delete;

  /// Has the server's end send at a rate, and counts what comes.
  /// @param nb_members  of kThroughput; of kBare there is one receiver, without protocol
  /// @return ETIMEDOUT: no server's end answers, or members do not get in; EMSGSIZE: the MTUs do
  ///         not fit; EBADMSG: pages came wrong, or the server's end began anew; EINTR
  [[nodiscard]] Result<LoadTrialResult> measure(LoadKind kind, double bytes_per_s, Nanos length,
                                                std::uint32_t nb_members);
  [[nodiscard]] std::uint64_t nb_bad() const noexcept { return nb_bad_; }  ///< control frames
  [[nodiscard]] std::uint64_t nb_foreign() const noexcept { return nb_foreign_; }

 private:
  [[nodiscard]] Result<LoadReport> ask(LoadType type, const LoadOrder& order);
  void send_question(LoadType type, const LoadOrder& order) noexcept;
  [[nodiscard]] Result<void> join();
  [[nodiscard]] Result<LoadReport> wait_done(Nanos length);
  [[nodiscard]] LoadTrialResult result(double offered, const LoadReport& report) const noexcept;
  void leave() noexcept;
  template <class Until>
  bool poll(Nanos most, Until&& until);
  unsigned turn(Nanos now);
  unsigned receive(Nanos now);
  void on_mbuf(const rte_mbuf& mbuf, Nanos now);
  void on_page(wire::Frame& frame) noexcept;
  void send(bool drained, Nanos now);
  void push(rte_mbuf* mbuf, std::size_t size) noexcept;

  const Port& port_;
  EthPort queue_;
  IdleConfig idle_;
  std::uint64_t seed_;
  const std::atomic<bool>& interrupted_;
  Prng ids_;
  TscClock clock_;
  TxTail<> tail_;
  GatherBuffer gather_;
  MacAddr server_ = kBroadcast;
  std::uint64_t trial_ = 0;
  std::unique_ptr<LoadMembers> members_;
  LoadFrame answer_;
  bool answered_ = false;
  unsigned nb_undrained_ = 0;  // turns that left frames in the receive ring
  std::uint64_t nb_bare_ = 0, nb_bad_crc_ = 0, nb_bad_ = 0, nb_foreign_ = 0;
};

}  // namespace snowfabric::bench
