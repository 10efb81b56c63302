// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "fabric/base/prng.hpp"
#include "fabric/base/result.hpp"
#include "fabric/eth_port.hpp"
#include "fabric/idle.hpp"
#include "fabric/poll_loop.hpp"
#include "pmd-config/port.hpp"
#include "tools/load_control.hpp"
#include "tools/load_members.hpp"
#include "tools/load_replay.hpp"

namespace snowfabric::bench {

/// What a trial at one rate came to.
struct LoadTrialResult {
  double offered_bytes_per_s = 0, sent_bytes_per_s = 0, frames_per_s = 0;
  double seconds = 0;                       ///< that it took: less where the image was not enough
  std::uint64_t nb_sent = 0, nb_bytes = 0;  ///< frames to the group, and bytes in them
  std::uint64_t nb_lost_worst = 0;          ///< frames the worst receiver lacks
  double nb_lost_mean = 0;                  ///< likewise, of all receivers

  [[nodiscard]] double loss_worst() const noexcept {
    return nb_sent == 0 ? 1 : static_cast<double>(nb_lost_worst) / static_cast<double>(nb_sent);
  }
};

/// What the replay of traces came to.
struct LoadReplayResult {
  double seconds = 0;  ///< until the last member had its last page
  Nanos wait_p50{0}, wait_p99{0}, wait_max{0};
  std::uint64_t nb_touched = 0;  ///< pages, by all members
  std::uint64_t nb_waits = 0;    ///< of these, pages that were not there and asked for
  std::uint64_t nb_retries = 0, nb_tx_bytes = 0;
  std::uint64_t nb_sent = 0;  ///< frames to the group
  std::uint64_t nb_lost_worst = 0;
  double nb_lost_mean = 0;
};

struct LoadReplaySpec {
  std::span<const LoadTrace> traces;  ///< borrowed; members take them in turns
  std::uint32_t nb_pages = 0;         ///< of the image
  std::uint32_t nb_members = 0;
  unsigned nb_vcpus = 1;  ///< of each: pages that it waits for at once
  double max_bytes_per_s = 0;
  Nanos patience{};
};

/// How long members waited for the group, and it for them to be left alone.
struct LoadDelays {
  std::vector<Nanos> joins, leaves;
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
  /// Has every member touch the pages of a trace. @return as measure(); ETIMEDOUT: and some wait
  [[nodiscard]] Result<LoadReplayResult> replay(const LoadReplaySpec& spec);
  /// One member at a time joins while the server pushes, and leaves.
  /// @return as measure(); ETIMEDOUT: and frames do not begin, or not end
  [[nodiscard]] Result<LoadDelays> join_and_leave(unsigned nb_joins, double bytes_per_s);
  [[nodiscard]] std::uint64_t nb_bad() const noexcept { return nb_bad_; }  ///< control frames
  [[nodiscard]] std::uint64_t nb_foreign() const noexcept { return nb_foreign_; }

 private:
  static constexpr Nanos kPatience = std::chrono::seconds{3};     // for an answer
  static constexpr Nanos kTail = std::chrono::milliseconds{200};  // what is still on its way

  [[nodiscard]] Result<LoadReport> ask(LoadType type, const LoadOrder& order,
                                       Nanos patience = kPatience);
  void send_question(LoadType type, const LoadOrder& order) noexcept;
  [[nodiscard]] LoadOrder order_of(LoadKind kind, double bytes_per_s, Nanos length,
                                   std::uint32_t nb_pages, std::uint32_t nb_members) const noexcept;
  [[nodiscard]] Result<void> begin(const LoadOrder& order);
  void make_members(std::uint32_t nb_members, std::uint64_t seed);
  [[nodiscard]] Result<void> join();
  [[nodiscard]] Result<void> join_once(std::uint64_t seed, LoadDelays& out);
  [[nodiscard]] Result<LoadReport> wait_done(Nanos length);
  [[nodiscard]] LoadTrialResult result(double offered, const LoadReport& report) const noexcept;
  void leave() noexcept;
  bool poll(Nanos most, const std::function<bool()>& until);
  unsigned turn(Nanos now);
  unsigned receive(Nanos now);
  void on_mbuf(const rte_mbuf& mbuf, Nanos now);
  void take(wire::Frame& frame, const wire::EthHdr& eth, std::size_t nb_bytes, Nanos now);
  [[nodiscard]] static bool has_right_crcs(wire::Frame frame) noexcept;
  void send(bool drained, Nanos now);

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
  std::unique_ptr<LoadReplay> replay_;
  Nanos last_group_at_ = kNever;  // a frame to the group came
  LoadFrame answer_;
  bool answered_ = false;
  unsigned nb_undrained_ = 0;  // turns that left frames in the receive ring
  LoadSequence bare_;
  std::uint64_t nb_bare_ = 0, nb_bad_crc_ = 0, nb_bad_ = 0, nb_foreign_ = 0;
};

}  // namespace snowfabric::bench
