// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/client_engine.hpp"

#include <algorithm>
#include <utility>

#include "fabric/crc32c.hpp"

namespace snowfabric {
namespace {

using wire::Drop;
using wire::FrameType;
using wire::Priority;

constexpr Nanos kTimerTick{std::chrono::microseconds{256}};
constexpr int kCutOffIntervals = 10;  // without a frame to the group: report intervals
constexpr Nanos kRestartSpread{std::chrono::milliseconds{2}};  // re-asking after a server restart

}  // namespace

ClientEngine::ClientEngine(const ClientConfig& config, ClientStats& stats)
    : config_{config},
      stats_{stats},
      identity_{config.image_id, config.epoch, 0, config.space},
      server_{config.server.value_or(kBroadcast)},
      flights_(config.max_inflight),
      flight_of_{config.max_inflight},
      send_queues_{RingBuffer<std::uint32_t>{std::size_t{2} * config.max_inflight},
                   RingBuffer<std::uint32_t>{std::size_t{2} * config.max_inflight}},
      timers_{config.max_inflight, kTimerTick},
      rto_{RtoEstimator{config.rto}, RtoEstimator{config.rto}},
      prng_{config.seed},
      broadcast_phase_{1 + static_cast<unsigned>(prng_.next() % (kHellosABroadcast - 1))} {
  free_.reserve(config.max_inflight);
  for (std::uint32_t id = config.max_inflight; id-- > 0;) free_.push_back(id);
}

// --- frames in -------------------------------------------------------------------------------

Drop ClientEngine::on_frame(const wire::Frame& frame, const MacAddr& src, std::size_t frame_bytes,
                            Nanos now) {
  if (frame.image_id != identity_.image_id) return Drop::kForeignImage;
  if (frame.epoch != identity_.epoch) return Drop::kStaleEpoch;
  if (frame.space != identity_.space) return Drop::kOutOfRange;
  const bool by_sibling = (frame.flags & wire::kFlagSibling) != 0;
  if (by_sibling != (frame.type == FrameType::kRequest) && frame.type != FrameType::kPage &&
      frame.type != FrameType::kZeros)
    return Drop::kUnexpectedType;
  switch (frame.type) {
    case FrameType::kHello: return Drop::kUnexpectedType;
    case FrameType::kWelcome: return on_welcome(frame, src, now);
    case FrameType::kBye:
      if (const Drop why = on_bye(frame, now); why != Drop::kNone || nb_pages_ == 0) return why;
      break;
    default: break;
  }
  if (nb_pages_ == 0) return Drop::kUnexpectedType;  // no geometry yet
  if (frame.type == FrameType::kPage && frame.highest_gfn() >= nb_pages()) return Drop::kOutOfRange;
  if (frame.type == FrameType::kZeros)
    for (std::size_t i = 0; i < frame.nb_ranges(); ++i)
      if (const PageRange r = frame.range(i);
          r.first.value >= nb_pages() || r.nb_pages > nb_pages() - r.first.value)
        return Drop::kOutOfRange;
  if (by_sibling) return on_sibling(frame);
  if (frame.incarnation != identity_.incarnation) {
    greet(now);  // a restarted server: learn its incarnation
  } else if ((frame.flags & wire::kFlagSequenced) != 0) {
    // What was missed while this host was cut off says nothing of what it can take.
    if (now - last_sequenced_ > kCutOffIntervals * report_interval_) loss_.new_sequence();
    last_sequenced_ = now;
    loss_.on_seq(frame.seq);
    stats_.rx_lost.set(loss_.lost());
    rx_bytes_ += frame_bytes;
    if (is_quiet_) [[unlikely]]
      end_quiet(now);
  }
  if (frame.type == FrameType::kBye) return Drop::kNone;  // no sign of life
  last_heard_ = now;
  // One of another life is not ours before its WELCOME.
  if (frame.incarnation == identity_.incarnation) hear(now);
  return Drop::kNone;
}

/// The server lives.
void ClientEngine::hear(Nanos now) noexcept {
  last_heard_ = now;
  if (std::exchange(asks_siblings_, false)) ask_again_soon(now);
  if (state_ != ClientState::kServerDead) return;
  state_ = ClientState::kJoined;
  nb_overdue_ = 0;
  for (Flight& flight : flights_) {
    flight.overdue = false;
    flight.demanded_since = now;
  }
}

/// It says nothing of the server.
Drop ClientEngine::on_sibling(const wire::Frame& frame) noexcept {
  if (frame.type != FrameType::kRequest)
    stats_.rx_repairs.add(1);
  else if (frame.request.client_id.host() == config_.client_id)
    return Drop::kUnexpectedType;
  return Drop::kNone;
}

/// The server leaves, or does not admit us. Either way it may come back, or have room, at once.
Drop ClientEngine::on_bye(const wire::Frame& frame, Nanos now) noexcept {
  const std::uint64_t who = frame.bye.client_id.host();
  if (who == config_.client_id) {
    refused_ = true;
    stats_.refusals.add(1);
  } else if (who != 0 || nb_pages_ == 0) {
    return Drop::kUnexpectedType;
  }
  greet(now);
  return Drop::kNone;
}

Drop ClientEngine::on_welcome(const wire::Frame& frame, const MacAddr& src, Nanos now) {
  const wire::WelcomeBody& body = frame.welcome;
  if (body.client_id.host() != config_.client_id) return Drop::kUnexpectedType;
  const std::uint64_t nb_pages = body.nb_pages.host();
  const std::size_t nb_fragments = body.nb_fragments;
  if (nb_pages_ != 0 && nb_pages != nb_pages_) return Drop::kBadField;
  if (nb_pages > config_.max_pages) return Drop::kBadField;
  if (config_.tree != nullptr && !config_.tree->is_over(nb_pages)) return Drop::kBadHash;
  if (wire::fragment_stride(nb_fragments) + sizeof(wire::Header) + sizeof(wire::PageBody) >
      config_.mtu_bytes) {
    if (nb_pages_ != 0) return Drop::kBadField;  // no reason to lose the guests
    server_mtu_bytes_ = body.mtu_bytes.host();
    state_ = ClientState::kMtuTooSmall;
    return Drop::kNone;
  }
  if (nb_fragments > 1 && reassembler_.capacity() < config_.partial_pages)
    reassembler_ = Reassembler{config_.partial_pages};
  server_mtu_bytes_ = body.mtu_bytes.host();
  nb_pages_ = nb_pages;
  if (frame.incarnation != identity_.incarnation) on_incarnation(frame, now);
  server_ = src;
  nb_fragments_ = nb_fragments;
  report_interval_ = std::chrono::microseconds{body.report_interval_us.host()};
  hear(now);
  state_ = ClientState::kJoined;
  refused_ = false;
  next_hello_ = Nanos::max();
  next_report_ = now;  // the first report is the base line of the next
  return Drop::kNone;
}

void ClientEngine::on_incarnation(const wire::Frame& frame, Nanos now) noexcept {
  if (identity_.incarnation != 0) {
    stats_.server_restarts.add(1);
    ask_again_soon(now);
  }
  identity_.incarnation = frame.incarnation;
  loss_.new_sequence();
}

void ClientEngine::ask_again_soon(Nanos now) noexcept {
  for (std::uint32_t id = 0; id < flights_.size(); ++id) {
    if (!flights_[id].used) continue;
    flights_[id].attempts = 0;
    timers_.arm(id, now + prng_.below(kRestartSpread));
  }
}

std::optional<PageArrival> ClientEngine::take_page(const wire::Frame& frame, Nanos now,
                                                   Drop& drop) noexcept {
  drop = Drop::kNone;
  std::span<const std::byte> bytes = frame.tail;
  if (frame.page.nb_fragments > 1) {
    stats_.rx_fragments.add(1);
    bytes = reassembler_.add(frame.page, frame.tail);
    stats_.partial_evicted.set(reassembler_.evicted());
    if (bytes.empty()) return std::nullopt;
  }
  if (crc32c(bytes) != frame.page.crc32c.host()) {
    drop = Drop::kBadCrc;
    return std::nullopt;
  }
  const Gfn page{frame.page.gfn.host()};
  if (config_.tree != nullptr && !config_.tree->fits(page, bytes.first<kPageSize>())) {
    drop = Drop::kBadHash;
    return std::nullopt;
  }
  stats_.rx_pages.add(1);
  const std::uint32_t id = flight_of_.find(page);
  const bool asked = id != PageMap::kNone;
  const bool demanded = asked && flights_[id].priority == Priority::kDemand;
  if (asked)
    finish(id, now);
  else
    stats_.rx_unasked.add(1);
  return PageArrival{page, bytes.first<kPageSize>(), demanded};
}

void ClientEngine::on_duplicate(const wire::Frame& frame) noexcept {
  stats_.rx_duplicates.add(1);
  forget(Gfn{frame.page.gfn.host()});
}

std::uint32_t ClientEngine::nb_believed(FrameType type, PageRange range) const noexcept {
  if (config_.tree == nullptr) return range.nb_pages;
  if (type == FrameType::kZeros) return config_.tree->nb_zero(range);
  return range.first.value < nb_pages() ? 0 : range.nb_pages;
}

bool ClientEngine::take_range(FrameType type, PageRange range, Nanos now) noexcept {
  if (type == FrameType::kAbsent) {  // may name pages outside the image: that is its purpose
    stats_.absent_pages.add(range.nb_pages);
    if (range.first.value >= nb_pages()) return false;
    range.nb_pages = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(range.nb_pages, nb_pages() - range.first.value));
  } else {
    stats_.rx_zero_pages.add(range.nb_pages);
  }
  bool demanded = false;
  for (std::uint64_t p = range.first.value; p < range.first.value + range.nb_pages; ++p) {
    const std::uint32_t id = flight_of_.find(Gfn{p});
    if (id == PageMap::kNone) continue;
    demanded |= flights_[id].priority == Priority::kDemand;
    finish(id, now);
  }
  return demanded;
}

// --- flights ---------------------------------------------------------------------------------

bool ClientEngine::want(Gfn page, Priority priority, Nanos now) noexcept {
  if (const std::uint32_t id = flight_of_.find(page); id != PageMap::kNone) {
    Flight& flight = flights_[id];
    if (flight.priority == Priority::kPrefetch && priority == Priority::kDemand) {
      flight.priority = Priority::kDemand;  // raised: tell the server too
      flight.raised = true;
      flight.demanded_since = now;
      add_demand(now);
      stats_.asked_demand.add(1);
      queue(id, now);
    }
    return true;
  }
  if (free_.empty() && !make_room(priority)) return false;
  const std::uint32_t id = free_.back();
  free_.pop_back();
  flights_[id] = {
      .page = page, .first_asked = now, .demanded_since = now, .priority = priority, .used = true};
  flight_of_.insert(page, id);
  if (priority == Priority::kDemand) add_demand(now);
  (priority == Priority::kDemand ? stats_.asked_demand : stats_.asked_prefetch).add(1);
  stats_.inflight.add(1);
  queue(id, now);
  return true;
}

void ClientEngine::add_demand(Nanos now) noexcept {
  if (!waiting()) waiting_since_ = now;
  ++nb_demands_;
}

void ClientEngine::await_prefetch(bool awaited, Nanos now) noexcept {
  if (awaited && !waiting()) waiting_since_ = now;
  awaits_prefetch_ = awaited;
}

bool ClientEngine::make_room(Priority priority) noexcept {
  if (priority != Priority::kDemand) return false;
  for (std::uint32_t id = 0; id < flights_.size(); ++id)
    if (flights_[id].priority == Priority::kPrefetch) {
      release(id);
      return true;
    }
  return false;
}

void ClientEngine::queue(std::uint32_t id, Nanos now) noexcept {
  Flight& flight = flights_[id];
  flight.to_send = send_queues_[static_cast<std::size_t>(flight.priority)].push(id);
  // The queue may be full of stale entries: try again soon. And what never leaves is overdue too.
  timers_.arm(id, now + (flight.to_send ? config_.rto.max : config_.rto.min));
}

void ClientEngine::forget(Gfn page) noexcept {
  if (const std::uint32_t id = flight_of_.find(page); id != PageMap::kNone) release(id);
}

void ClientEngine::finish(std::uint32_t id, Nanos now) noexcept {
  const Flight& flight = flights_[id];
  // A sibling's answer says nothing of the server's.
  if (flight.attempts > 0 && !flight.raised && !asks_siblings_) {
    RtoEstimator& rto = rto_[static_cast<std::size_t>(flight.priority)];
    if (flight.attempts == 1)
      rto.sample(now - flight.first_asked);
    else
      rto.answered_late(flight.attempts - 1U);
    stats_.srtt_us.set(to_micros(rto_[0].srtt()));
  }
  release(id);
}

void ClientEngine::release(std::uint32_t id) noexcept {
  Flight& flight = flights_[id];
  if (flight.priority == Priority::kDemand) --nb_demands_;
  if (flight.overdue) --nb_overdue_;
  timers_.cancel(id);
  flight_of_.erase(flight.page);
  flight = {};
  free_.push_back(id);
  stats_.inflight.set(flights_.size() - free_.size());
}

void ClientEngine::on_timer(std::uint32_t id, Nanos now) noexcept {
  Flight& flight = flights_[id];
  if (flight.priority == Priority::kPrefetch && flight.attempts >= config_.prefetch_attempts) {
    stats_.prefetch_given_up.add(1);
    release(id);
    return;
  }
  see_overdue(flight, now);
  if (flight.to_send) {  // it waits for the port
    timers_.arm(id, now + config_.rto.max);
    return;
  }
  flight.timed_out = flight.attempts > 0;
  queue(id, now);
}

void ClientEngine::see_overdue(Flight& flight, Nanos now) noexcept {
  const bool dead = state_ == ClientState::kServerDead;
  const Nanos patience = dead ? config_.give_up : config_.page_give_up;
  if (!flight.used || flight.overdue || flight.priority != Priority::kDemand ||
      now - flight.demanded_since < patience)
    return;
  flight.overdue = true;
  ++nb_overdue_;
  if (!dead) stats_.overdue_pages.add(1);
}

}  // namespace snowfabric
