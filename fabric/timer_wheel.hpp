// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// Hashed timing wheel over timers 0 .. nb_timers - 1 (Varghese and Lauck, SOSP 1987, scheme 6).
/// Arm and cancel are O(1); a timer beyond one turn waits in its bucket for the next turn.
class TimerWheel {
 public:
  TimerWheel(std::uint32_t nb_timers, Nanos tick) : tick_{tick}, nodes_(nb_timers) {
    heads_.fill(kNil);
  }

  void arm(std::uint32_t id, Nanos deadline) noexcept {
    cancel(id);
    Node& node = nodes_[id];
    // A deadline in the past would hide in a bucket that has been passed already.
    node.deadline = std::max(deadline, swept_to_ + Nanos{1});
    node.bucket = bucket_of(node.deadline);
    node.next = heads_[node.bucket];
    node.prev = kNil;
    if (node.next != kNil) nodes_[node.next].prev = id;
    heads_[node.bucket] = id;
    ++armed_;
  }

  void cancel(std::uint32_t id) noexcept {
    Node& node = nodes_[id];
    if (node.bucket == kNil) return;
    (node.prev == kNil ? heads_[node.bucket] : nodes_[node.prev].next) = node.next;
    if (node.next != kNil) nodes_[node.next].prev = node.prev;
    node.bucket = kNil;
    --armed_;
  }

  /// Calls `due(id)` for every timer whose deadline has come; the timer is disarmed before, and may
  /// be armed again (for later) or others cancelled by the call.
  template <class Due>
  void expire(Nanos now, Due&& due) noexcept {
    const Nanos from = swept_to_;
    if (now <= from) return;
    const std::int64_t nb_ticks = std::min<std::int64_t>(now / tick_ - from / tick_, kBuckets - 1);
    swept_to_ = now;  // timers armed by `due` land after this sweep
    if (armed_ == 0) return;
    for (std::int64_t t = 0; t <= nb_ticks; ++t)
      expire_bucket(bucket_of(now - t * tick_), now, due);
  }

  /// A time before which no timer is due; Nanos::max() when none is armed.
  [[nodiscard]] Nanos next_deadline() const noexcept {
    if (armed_ == 0) return Nanos::max();
    Nanos earliest = Nanos::max();
    for (std::int64_t t = 0; t < kBuckets && earliest > swept_to_ + t * tick_; ++t)
      for (std::uint32_t id = heads_[bucket_of(swept_to_ + t * tick_)]; id != kNil;
           id = nodes_[id].next)
        earliest = std::min(earliest, nodes_[id].deadline);
    return earliest;
  }

 private:
  static constexpr std::uint32_t kNil = ~std::uint32_t{0};
  static constexpr std::int64_t kBuckets = 256;
  struct Node {
    Nanos deadline{0};
    std::uint32_t next = kNil, prev = kNil, bucket = kNil;
  };

  [[nodiscard]] std::uint32_t bucket_of(Nanos t) const noexcept {
    return static_cast<std::uint32_t>((t / tick_) % kBuckets);
  }

  template <class Due>
  void expire_bucket(std::uint32_t bucket, Nanos now, Due& due) noexcept {
    // `due` may re-arm into this bucket or cancel a neighbour: look again from the head each time.
    for (bool again = true; again;) {
      again = false;
      for (std::uint32_t id = heads_[bucket]; id != kNil; id = nodes_[id].next) {
        if (nodes_[id].deadline > now) continue;
        cancel(id);
        due(id);
        again = true;
        break;
      }
    }
  }

  Nanos tick_;
  std::vector<Node> nodes_;
  std::array<std::uint32_t, kBuckets> heads_{};
  Nanos swept_to_{0};
  std::uint32_t armed_ = 0;
};

}  // namespace snowfabric
