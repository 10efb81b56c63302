// SPDX-License-Identifier: BSD-3-Clause
// What the members of a load wait for: pages of their traces, the group when they join.
#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "tools/load_driver.hpp"

namespace snowfabric::bench {
namespace {

constexpr Nanos kStay = std::chrono::milliseconds{20};      // of a member that is in
constexpr Nanos kSilence = std::chrono::milliseconds{50};   // after it nothing more comes
constexpr Nanos kDelayPatience = std::chrono::seconds{10};  // longer than the server's for members
constexpr Nanos kJoinLength = 2 * kDelayPatience;           // of a trial: it comes and goes

}  // namespace

Result<LoadReplayResult> LoadDriver::replay(const LoadReplaySpec& spec) {
  const LoadOrder order = order_of(LoadKind::kReplay, spec.max_bytes_per_s, spec.patience,
                                   spec.nb_pages, spec.nb_members);
  if (const auto begun = begin(order); !begun) return std::unexpected(begun.error());
  make_members(spec.nb_members, seed_);
  if (const auto in = join(); !in) return std::unexpected(in.error());
  if (const auto gone = ask(LoadType::kGo, order); !gone) return std::unexpected(gone.error());
  const Nanos began = clock_.now();
  replay_ = std::make_unique<LoadReplay>(*members_, spec.traces, spec.nb_pages, spec.nb_vcpus);
  replay_->begin(began);
  poll(spec.patience, [this] { return replay_->done(); });
  const double seconds = std::chrono::duration<double>(clock_.now() - began).count();
  if (interrupted_.load()) return fail(EINTR, "load");
  if (!replay_->done())
    return fail(ETIMEDOUT,
                fmt::format("replay: {} of {} members had all their pages after {:.0f} s",
                            replay_->nb_done(), spec.nb_members, seconds));
  poll(kTail, [] { return false; });
  const auto report = ask(LoadType::kAsk, order);
  leave();
  if (!report) return std::unexpected(report.error());
  if (const auto nb_bad = nb_bad_crc_ + replay_->nb_bad_crc(); nb_bad != 0)
    return fail(EBADMSG, fmt::format("{} frames came with a wrong checksum", nb_bad));
  const LoadTrialResult counted = result(spec.max_bytes_per_s, *report);
  const Nanos longest = replay_->longest_wait();  // of a percentile a bound is known
  LoadReplayResult out{.seconds = seconds,
                       .wait_p50 = std::min(replay_->waits().percentile(0.5), longest),
                       .wait_p99 = std::min(replay_->waits().percentile(0.99), longest),
                       .wait_max = longest,
                       .nb_touched = replay_->nb_touched(),
                       .nb_waits = replay_->nb_waits(),
                       .nb_tx_bytes = report->nb_tx_bytes.host(),
                       .nb_sent = counted.nb_sent,
                       .nb_lost_worst = counted.nb_lost_worst,
                       .nb_lost_mean = counted.nb_lost_mean};
  for (const auto& member : members_->all()) out.nb_retries += member->stats.retries.read();
  return out;
}

Result<LoadDelays> LoadDriver::join_and_leave(unsigned nb_joins, double bytes_per_s) {
  const LoadOrder order =
      order_of(LoadKind::kJoin, bytes_per_s, kJoinLength, pages_for(bytes_per_s, kJoinLength), 1);
  LoadDelays out;
  for (unsigned i = 0; i < nb_joins; ++i) {
    // A trial each: neither pages nor time of one would be enough for all.
    if (const auto begun = begin(order); !begun) return std::unexpected(begun.error());
    if (const auto gone = ask(LoadType::kGo, order); !gone) return std::unexpected(gone.error());
    if (const auto once = join_once(seed_ + i, out); !once) return std::unexpected(once.error());
  }
  return out;
}

Result<void> LoadDriver::join_once(std::uint64_t seed, LoadDelays& out) {
  make_members(1, seed);
  const Nanos asked_at = clock_.now();
  const auto came = [this] { return members_->all()[0]->nb_frames != 0; };
  if (!poll(kDelayPatience, came))
    return interrupted_.load()
               ? fail(EINTR, "load")
               : fail(ETIMEDOUT, "a member joined, and no frame to the group came to it");
  out.joins.push_back(last_group_at_ - asked_at);
  poll(kStay, [] { return false; });
  leave();
  members_.reset();  // it would join again
  const Nanos left_at = clock_.now();
  last_group_at_ = left_at;
  if (!poll(kDelayPatience, [this] { return clock_.now() - last_group_at_ > kSilence; }))
    return interrupted_.load() ? fail(EINTR, "load")
                               : fail(ETIMEDOUT, "the last member left, and frames still come");
  out.leaves.push_back(last_group_at_ - left_at);
  return {};
}

}  // namespace snowfabric::bench
