// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/time.hpp"
#include "sim/link.hpp"

namespace snowfabric::sim {

enum class FaultKind : std::uint8_t {
  kLoss,         ///< frames are lost at random, `amount` of them
  kBursts,       ///< frames are lost in bursts, one every 1 / amount frames
  kDuplicates,   ///< frames arrive twice, `amount` of them
  kReordering,   ///< frames overtake each other: `amount` seconds of jitter
  kCorruption,   ///< a bit of page data flips, in `amount` of the frames
  kPartition,    ///< the party hears nobody, and nobody hears it
  kCrash,        ///< the process dies, and another starts when the time is over
  kPause,        ///< the process stands still
  kSlowness,     ///< every frame takes the process `amount` seconds
  kGuestDeath,   ///< a guest of the party dies
  kLateJoin,     ///< the process starts only when the time is over
  kLateGuest,    ///< a guest comes only when the time is over
  kGuestPause,   ///< the vCPUs of a guest stand still
  kBusyGuest,    ///< a guest puts off what it is given, `amount` times
  kGivenBack,    ///< a guest gives `amount` pages back
  kStrangers,    ///< `amount` page frames of another epoch or image, or by an insider, come to a
                 ///< memtap
  kServerDeath,  ///< the server dies for good
  kCount
};
inline constexpr std::size_t kNbFaultKinds = static_cast<std::size_t>(FaultKind::kCount);
inline constexpr std::array<std::string_view, kNbFaultKinds> kFaultNames{
    "loss",        "bursts",     "duplicates", "reordering",  "corruption",  "partition",
    "crash",       "pause",      "slowness",   "guest_death", "late_join",   "late_guest",
    "guest_pause", "busy_guest", "given_back", "strangers",   "server_death"};

[[nodiscard]] constexpr std::string_view to_string(FaultKind kind) noexcept {
  return kFaultNames[static_cast<std::size_t>(kind)];
}

struct Fault {
  FaultKind kind{};
  Nanos at{0}, length{0};
  std::uint32_t party = 0;  ///< 0: the server, n: the nth memtap
  std::uint32_t guest = 0;  ///< of that memtap, where it is about one: modulo their number
  double amount = 0;
};

/// A seed proves little with fewer kinds of fault.
inline constexpr std::uint64_t kLeastKinds = 3;

/// A lab and what goes wrong in it. Everything else comes from the seed.
struct Scenario {
  std::uint64_t seed = 1;
  std::uint64_t nb_pages = 2048;
  std::uint32_t nb_memtaps = 4, guests_per_memtap = 1;
  std::uint16_t mtu_bytes = 9000;
  std::uint32_t prefetch = 16;
  std::uint32_t max_inflight = 4096;  ///< requests, and pages in fragments, of a memtap
  std::uint32_t rx_ring = 4096;       ///< frames, of each party
  std::uint32_t vcpus = 1;            ///< of each clone
  double bytes_per_s = 1.25e9;        ///< of each link
  Nanos delay = LinkConfig{}.delay;   ///< likewise
  std::size_t queue_bytes = LinkConfig{}.queue_bytes;  ///< likewise
  bool push = false;
  double zero_share = 0.3;
  double overlap = 0.5;    ///< share of the clones that touch pages in the same order
  bool hash_tree = false;  ///< memtaps have it: strangers may be of the group as well
  bool keeps = false;      ///< memtaps keep pages, and hand them on when the server is silent
  std::vector<Fault> faults{};

  /// Four clones or more, 2,000 pages or more, kLeastKinds of fault or more.
  [[nodiscard]] static Scenario of_seed(std::uint64_t seed);
  /// How long the server may have been out of reach of some memtap, at most.
  [[nodiscard]] Nanos outage() const;
  /// When the last fault is over.
  [[nodiscard]] Nanos faults_end() const;
  [[nodiscard]] bool has(FaultKind kind) const;
};

/// A line each: the lab, then each fault.
[[nodiscard]] std::string to_string(const Scenario& scenario);

}  // namespace snowfabric::sim
