// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "fabric/base/time.hpp"
#include "fabric/rto.hpp"
#include "fabric/server_engine.hpp"
#include "sim/link.hpp"

/// The capacity question: so many clones, this image, this link: how long, and how many bytes?
namespace snowfabric::sim {

enum class LossAt : std::uint8_t {
  kReceivers,  ///< each loses frames of its own
  kUplink,     ///< between server and switch: all lose the same
};

/// Pages that are received in a run at most, of an image of at most 1 GiB: 64 clones of 1 GiB are
/// run frame by frame.
inline constexpr std::uint64_t kMostReceptions = std::uint64_t{64} << 18U;

/// Whose links FlowRule::kTagged goes by.
enum class Tagged : std::uint8_t { kFast, kSlow };

struct PlanConfig {
  std::uint64_t nb_clones = 8;   ///< at least 1; each on a host of its own
  std::uint64_t nb_pages = 0;    ///< of the image; at least 1
  double zero_share = 0;         ///< of them
  double bytes_per_s = 1.25e9;   ///< of every link
  double start_bytes_per_s = 0;  ///< the server's rate before the first reports; 0: of its link
  std::uint64_t nb_slow = 0;     ///< so many clones, the last ones, have links of slow_bytes_per_s
  double slow_bytes_per_s = 0;
  Tagged tagged = Tagged::kFast;  ///< that the server tags, once all hosts have joined
  std::size_t burst_bytes = 0;    ///< of every link: LinkConfig
  double loss = 0;                ///< share of the frames, once all hosts have joined
  LossAt loss_at = LossAt::kReceivers;
  bool push = true;             ///< the server sends what nobody asked for
  double push_bytes_per_s = 0;  ///< at most; 0: as its rate allows
  std::uint16_t mtu_bytes = 9000;
  double touched = 1;  ///< share of the pages that a clone touches, one behind the other
  double overlap = 0;  ///< share of them that it touches in the order of its siblings
  /// What clones touch instead, in turns: pages of the image, in their order. Not for an answer
  /// that is extrapolated.
  std::vector<std::vector<std::uint64_t>> traces{};
  unsigned prefetch = 16;  ///< neighbours that a memtap asks for with a fault, at most
  Nanos think{std::chrono::microseconds{10}};     ///< between a touch and the next
  Nanos fault{0};                                 ///< more after one that had to wait
  Nanos per_frame{std::chrono::microseconds{1}};  ///< a party's time for a frame that it receives
  Nanos link_delay{LinkConfig{}.delay};
  std::size_t queue_bytes = LinkConfig{}.queue_bytes;  ///< before a link
  std::uint64_t seed = 1;
  ServerConfig server{};  ///< MTU, push, members and rates are by the above
  RtoConfig rto{};        ///< of every memtap
  std::uint64_t most_receptions = kMostReceptions;
};

/// What one answer is made of.
struct PlanResult {
  std::uint64_t nb_clones = 0;
  std::uint64_t nb_pages = 0;      ///< of the image that the figures are for
  std::uint64_t nb_pages_run = 0;  ///< of the one that was run
  /// It is extrapolated from an image that went out before the server knew of losses: its bytes are
  /// not to be trusted.
  bool from_start_up = false;
  std::vector<double>
      done_s{};  ///< when a clone had touched its last page; of those that have; ascending
  double slow_done_s = 0;                        ///< when the last of the slow clones had
  double longest_wait_s = 0;                     ///< of any clone, for a page
  double wire_bytes = 0;                         ///< that the server sent
  double request_bytes = 0, request_frames = 0;  ///< that it received
  double server_ring_drops = 0;                  ///< that it had no room for
  double pages_multicast = 0, pages_unicast = 0, wants = 0, lockstep_hits = 0, retries = 0;
  double ring_drops = 0, queue_drops = 0;  ///< frames for which a memtap, or a link, had no room

  [[nodiscard]] bool finished() const noexcept { return done_s.size() == nb_clones; }
  [[nodiscard]] bool is_extrapolated() const noexcept { return nb_pages != nb_pages_run; }
  /// When so many clones were done. @param share  of them, 0 to 1. @return infinity: they were not
  [[nodiscard]] double done_at(double share) const;
};

/// Pages of the largest image that is run for so many clones: of config.most_receptions, or up to
/// 1.5 times that where losses ask for it.
[[nodiscard]] std::uint64_t most_pages_run(const PlanConfig& config);

/// The answer. An image of more than most_pages_run() is not run, but two smaller ones are, and
/// each figure grows with the image as it does between these.
/// @param progress  called now and then with the share that is done; returns false to give up
[[nodiscard]] PlanResult plan(const PlanConfig& config,
                              const std::function<bool(double)>& progress = {});

}  // namespace snowfabric::sim
