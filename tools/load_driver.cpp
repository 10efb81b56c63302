// SPDX-License-Identifier: BSD-3-Clause
#include "tools/load_driver.hpp"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "fabric/crc32c.hpp"
#include "tools/load_mbuf.hpp"

namespace snowfabric::bench {
namespace {

constexpr Nanos kAskAgain = std::chrono::milliseconds{100};
constexpr Nanos kJoinPatience = std::chrono::seconds{20};  // for a thousand members
/// Some ticks of the engine: it decides in them whether two pages go in a frame.
constexpr Nanos kSettle = std::chrono::milliseconds{300};
constexpr Nanos kLongestNap = std::chrono::milliseconds{1};
constexpr unsigned kMaxRxBursts = 16;   // a turn
constexpr unsigned kMaxUndrained = 32;  // turns
constexpr unsigned kLookedAt = 64;      // members a turn

}  // namespace

LoadDriver::LoadDriver(const Port& port, const IdleConfig& idle, std::uint64_t seed,
                       const std::atomic<bool>& interrupted)
    : port_{port},
      queue_{port.queue()},
      idle_{idle},
      seed_{seed},
      interrupted_{interrupted},
      ids_{rte_rdtsc() ^ seed} {}

Result<LoadTrialResult> LoadDriver::measure(LoadKind kind, double bytes_per_s, Nanos length,
                                            std::uint32_t nb_members) {
  const LoadOrder order =
      order_of(kind, bytes_per_s, length, pages_for(bytes_per_s, length), nb_members);
  if (const auto begun = begin(order); !begun) return std::unexpected(begun.error());
  if (kind != LoadKind::kBare) {
    make_members(nb_members, seed_);
    if (const auto in = join(); !in) return std::unexpected(in.error());
  }
  // The answer may be lost in what it began, again and again.
  const auto gone = ask(LoadType::kGo, order, length + kPatience);
  const auto done = gone ? wait_done(length) : gone;
  leave();
  if (!done) return std::unexpected(done.error());
  if (nb_bad_crc_ != 0)
    return fail(EBADMSG, fmt::format("{} frames came with a wrong checksum", nb_bad_crc_));
  return result(bytes_per_s, *done);
}

LoadOrder LoadDriver::order_of(LoadKind kind, double bytes_per_s, Nanos length,
                               std::uint32_t nb_pages, std::uint32_t nb_members) const noexcept {
  LoadOrder order{};
  order.kind = static_cast<std::uint8_t>(kind);
  order.millis = static_cast<std::uint32_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(length).count());
  order.bytes_per_s = static_cast<std::uint64_t>(std::max(bytes_per_s, 1.0));
  order.nb_pages = nb_pages;
  order.nb_members = nb_members;
  order.mtu_bytes = static_cast<std::uint16_t>(port_.mtu_bytes());
  return order;
}

/// A new trial, for which the server is ready. No frame of the one before counts in it.
Result<void> LoadDriver::begin(const LoadOrder& order) {
  trial_ = ids_.next() | 1U;
  replay_.reset();
  members_.reset();
  bare_ = {};
  nb_bare_ = nb_bad_crc_ = 0;
  const auto ready = ask(LoadType::kStart, order);
  if (!ready) return std::unexpected(ready.error());
  if (ready->mtu_bytes.host() > port_.mtu_bytes())
    return fail(EMSGSIZE, fmt::format("the server's port has MTU {}, this one {}: give both --mtu",
                                      ready->mtu_bytes.host(), port_.mtu_bytes()));
  return {};
}

void LoadDriver::make_members(std::uint32_t nb_members, std::uint64_t seed) {
  members_ = std::make_unique<LoadMembers>(
      nb_members, trial_, static_cast<std::uint16_t>(port_.mtu_bytes()), server_, seed);
}

/// Asks until it is answered. @return ETIMEDOUT; EBADMSG: the other end does not know the trial
Result<LoadReport> LoadDriver::ask(LoadType type, const LoadOrder& order, Nanos patience) {
  answered_ = false;
  const auto came = [&] { return answered_ && answer_.report.answers == static_cast<int>(type); };
  for (Nanos waited{0}; waited < patience && !came(); waited += kAskAgain) {
    send_question(type, order);
    poll(kAskAgain, came);
    if (interrupted_.load()) return fail(EINTR, "load");
  }
  if (!came())
    return fail(ETIMEDOUT,
                fmt::format("nothing answers at the other port for {} s: does `fabric-bench load "
                            "--as server` run there, and does what is between let frames of "
                            "EtherType {:#06x} pass?",
                            std::chrono::duration_cast<std::chrono::seconds>(patience).count(),
                            wire::kEtherType));
  if (answer_.report.state == static_cast<std::uint8_t>(LoadState::kUnknown))
    return fail(EBADMSG, "the server's end began anew, or serves somebody else");
  return answer_.report;
}

void LoadDriver::send_question(LoadType type, const LoadOrder& order) noexcept {
  rte_mbuf* const mbuf = tail_.room() == 0 ? nullptr : rte_pktmbuf_alloc(port_.pool());
  if (mbuf == nullptr) return;  // it is asked again
  const LoadFrame frame{.type = type, .trial = trial_, .order = order};
  const MacAddr to = type == LoadType::kStart ? kBroadcast : server_;  // it may be another by now
  write_load({rte_pktmbuf_mtod(mbuf, std::byte*), kLoadFrameBytes}, to, port_.mac(), frame);
  push_frame(tail_, mbuf, kLoadFrameBytes);
}

Result<void> LoadDriver::join() {
  const std::size_t nb_all = members_->all().size();
  poll(kJoinPatience,
       [&] { return members_->nb_joined() == nb_all || members_->any_mtu_too_small(); });
  if (interrupted_.load()) return fail(EINTR, "load");
  if (members_->any_mtu_too_small())
    return fail(EMSGSIZE, "the server's frames do not fit this port: give both --mtu");
  if (members_->nb_joined() != nb_all)
    return fail(ETIMEDOUT, fmt::format("{} of {} members were welcomed: does what is between learn "
                                       "so many addresses behind one port?",
                                       members_->nb_joined(), nb_all));
  poll(kSettle, [] { return false; });
  return {};
}

/// Asks all the while: a bare trial ends without. @return the server's last word, when all that was
/// sent must have come
Result<LoadReport> LoadDriver::wait_done(Nanos length) {
  const Nanos give_up = clock_.now() + length + kPatience;
  for (;;) {
    const auto report = ask(LoadType::kAsk, {}, length + kPatience);
    if (!report) return report;
    if (report->state == static_cast<std::uint8_t>(LoadState::kDone)) break;
    if (clock_.now() > give_up)
      return fail(ETIMEDOUT, "the server's end does not come to the end of a trial");
    poll(kAskAgain, [] { return false; });
  }
  poll(kTail, [] { return false; });
  return ask(LoadType::kAsk, {});
}

LoadTrialResult LoadDriver::result(double offered, const LoadReport& report) const noexcept {
  const double seconds = static_cast<double>(std::max<std::uint64_t>(report.nanos.host(), 1)) / 1e9;
  LoadTrialResult out{.offered_bytes_per_s = offered,
                      .sent_bytes_per_s = static_cast<double>(report.nb_bytes.host()) / seconds,
                      .frames_per_s = static_cast<double>(report.nb_frames.host()) / seconds,
                      .seconds = seconds,
                      .nb_sent = report.nb_frames.host(),
                      .nb_bytes = report.nb_bytes.host()};
  const auto lost = [&](std::uint64_t got) { return out.nb_sent - std::min(got, out.nb_sent); };
  if (members_ == nullptr) {
    out.nb_lost_worst = lost(nb_bare_);
    out.nb_lost_mean = static_cast<double>(out.nb_lost_worst);
    return out;
  }
  for (const auto& member : members_->all()) {
    out.nb_lost_worst = std::max(out.nb_lost_worst, lost(member->nb_frames));
    out.nb_lost_mean +=
        static_cast<double>(lost(member->nb_frames)) / static_cast<double>(members_->all().size());
  }
  return out;
}

void LoadDriver::leave() noexcept {
  if (members_ == nullptr) return;
  for (const auto& member : members_->all()) {
    if (tail_.room() == 0) tail_.flush(queue_);
    rte_mbuf* const mbuf = tail_.room() == 0 ? nullptr : rte_pktmbuf_alloc(port_.pool());
    if (mbuf == nullptr) return;  // the next trial ends their membership
    push_frame(
        tail_, mbuf,
        member->engine.write_bye({rte_pktmbuf_mtod(mbuf, std::byte*), rte_pktmbuf_tailroom(mbuf)}));
  }
  tail_.flush(queue_);
}

// --- loop ------------------------------------------------------------------------------------

/// Turns until it is so, or for so long. @return whether it is
bool LoadDriver::poll(Nanos most, const std::function<bool()>& until) {
  Idle idle{idle_};
  const std::array wait_fds{port_.wait_fd()};
  const Nanos end = clock_.now() + most;
  while (!until()) {
    const Nanos now = clock_.now();
    if (now >= end || interrupted_.load(std::memory_order_relaxed)) return false;
    if (turn(now) != 0) {
      idle.hit();
      continue;
    }
    const bool sleeps = idle.about_to_sleep();
    if (sleeps) port_.arm_rx_interrupt();
    idle.miss(wait_fds, kLongestNap);
    if (sleeps) port_.disarm_rx_interrupt();
  }
  return true;
}

unsigned LoadDriver::turn(Nanos now) {
  unsigned nb_done = 0;
  bool drained = false;
  for (unsigned i = 0; i < kMaxRxBursts && !drained; ++i) {
    const unsigned nb_rx = receive(now);
    nb_done += nb_rx;
    drained = nb_rx < kBurst;
  }
  if (drained || ++nb_undrained_ == kMaxUndrained) {
    send(drained, now);
    nb_undrained_ = 0;
  }
  return nb_done + tail_.flush(queue_);
}

unsigned LoadDriver::receive(Nanos now) {
  std::array<rte_mbuf*, kBurst> burst;
  const std::uint16_t nb_rx = queue_.rx_burst(burst);
  prefetch_mbufs({burst.data(), nb_rx});
  for (std::uint16_t i = 0; i < nb_rx; ++i) {
    if (i + 1 < nb_rx) prefetch_frame(*burst[i + 1]);
    on_mbuf(*burst[i], now);
  }
  rte_pktmbuf_free_bulk(burst.data(), nb_rx);
  return nb_rx;
}

void LoadDriver::on_mbuf(const rte_mbuf& mbuf, Nanos now) {
  wire::EthHdr eth;
  wire::Frame frame;
  LoadFrame answer;
  if (!read_eth(mbuf, eth) || eth.type.host() != wire::kEtherType || eth.src.is_multicast()) {
    ++nb_foreign_;
    return;
  }
  const auto payload = gather(mbuf, gather_);
  const LoadVerdict verdict = parse_load(payload, answer);
  if (verdict == LoadVerdict::kBad) {
    ++nb_bad_;
  } else if (verdict == LoadVerdict::kGood) {
    // Any other came late: an answer to a question of the trial before, perhaps.
    if (answer.type != LoadType::kState || answer.trial != trial_ || eth.dst != port_.mac()) return;
    answer_ = answer;
    answered_ = true;
    server_ = eth.src;
  } else if (wire::parse(payload, frame) != wire::Drop::kNone || frame.image_id != trial_) {
    ++nb_foreign_;
  } else {
    take(frame, eth, mbuf.pkt_len, now);
  }
}

/// A frame of this trial.
void LoadDriver::take(wire::Frame& frame, const wire::EthHdr& eth, std::size_t nb_bytes,
                      Nanos now) {
  const bool to_group = (frame.flags & wire::kFlagSequenced) != 0;
  if (to_group) last_group_at_ = now;
  if (members_ == nullptr && to_group && bare_.is_new(frame.seq)) ++nb_bare_;
  const bool taken = members_ == nullptr || members_->on_frame(frame, eth.dst, eth.src, nb_bytes,
                                                               now) == wire::Drop::kNone;
  if (!taken || frame.type != wire::FrameType::kPage) return;
  if (!has_right_crcs(frame))
    ++nb_bad_crc_;
  else if (replay_ != nullptr)
    replay_->on_page(frame, eth.dst, now);
}

/// Looked at once for all members: they were sent the same bytes. Of a fragment it says nothing.
bool LoadDriver::has_right_crcs(wire::Frame frame) noexcept {
  do {
    if (frame.page.nb_fragments == 1 && crc32c(frame.tail) != frame.page.crc32c.host())
      return false;
  } while (frame.next_page());
  return true;
}

void LoadDriver::send(bool drained, Nanos now) {
  unsigned nb_looked_at = kLookedAt;
  while (members_ != nullptr && nb_looked_at > 0 && tail_.size() < kBurst) {
    rte_mbuf* const mbuf = rte_pktmbuf_alloc(port_.pool());
    if (mbuf == nullptr) return;
    const std::size_t size =
        members_->next({rte_pktmbuf_mtod(mbuf, std::byte*), rte_pktmbuf_tailroom(mbuf)},
                       nb_looked_at, drained, now);
    if (size == 0) {
      rte_pktmbuf_free(mbuf);
      return;
    }
    push_frame(tail_, mbuf, size);
  }
}

}  // namespace snowfabric::bench
