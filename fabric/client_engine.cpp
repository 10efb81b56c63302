// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/client_engine.hpp"

#include <algorithm>

#include "fabric/crc32c.hpp"

namespace snowfabric {
namespace {

using wire::Drop;
using wire::FrameType;
using wire::Priority;

constexpr Nanos kTimerTick{std::chrono::microseconds{256}};
constexpr Nanos kRestartSpread{std::chrono::milliseconds{2}};  // re-asking after a server restart

std::uint64_t micros(Nanos t) noexcept { return static_cast<std::uint64_t>(t.count()) / 1000; }

/// Whether `next` is the page behind `run` and otherwise alike.
bool extends(const wire::WantEntry& run, const wire::WantEntry& next) noexcept {
  return run.nb_pages.host() < wire::kMaxWantPages &&
         run.first.host() + run.nb_pages.host() == next.first.host() &&
         run.priority == next.priority && run.flags == next.flags && run.fragments == 0 &&
         next.fragments == 0;
}

}  // namespace

ClientEngine::ClientEngine(const ClientConfig& config, ClientStats& stats)
    : config_{config},
      stats_{stats},
      identity_{config.image_id, config.epoch, 0, config.space},
      server_{config.server.value_or(kBroadcast)},
      flights_(config.max_inflight),
      send_queues_{RingBuffer<std::uint32_t>{std::size_t{2} * config.max_inflight},
                   RingBuffer<std::uint32_t>{std::size_t{2} * config.max_inflight}},
      timers_{config.max_inflight, kTimerTick},
      rto_{RtoEstimator{config.rto}, RtoEstimator{config.rto}},
      prng_{config.seed} {
  free_.reserve(config.max_inflight);
  for (std::uint32_t id = config.max_inflight; id-- > 0;) free_.push_back(id);
}

// --- frames in -------------------------------------------------------------------------------

Drop ClientEngine::on_frame(const wire::Frame& frame, const MacAddr& src, std::size_t frame_bytes,
                            Nanos now) noexcept {
  if (frame.image_id != identity_.image_id) return Drop::kForeignImage;
  if (frame.epoch != identity_.epoch) return Drop::kStaleEpoch;
  if (frame.space != identity_.space) return Drop::kOutOfRange;
  switch (frame.type) {
    case FrameType::kHello:
    case FrameType::kRequest: return Drop::kUnexpectedType;
    case FrameType::kWelcome: return on_welcome(frame, src, now);
    default: break;
  }
  if (slot_of_.empty()) return Drop::kUnexpectedType;  // no geometry yet
  if (frame.type == FrameType::kPage && frame.page.gfn.host() >= nb_pages())
    return Drop::kOutOfRange;
  if (frame.type == FrameType::kZeros)
    for (std::size_t i = 0; i < frame.nb_ranges(); ++i)
      if (const PageRange r = frame.range(i);
          r.first.value >= nb_pages() || r.nb_pages > nb_pages() - r.first.value)
        return Drop::kOutOfRange;
  if (frame.type == FrameType::kBye && frame.bye.client_id.host() != 0)
    return Drop::kUnexpectedType;
  if (frame.incarnation != identity_.incarnation) {
    greet(now);  // a restarted server: learn its incarnation
  } else if ((frame.flags & wire::kFlagSequenced) != 0) {
    loss_.on_seq(frame.seq);
    stats_.rx_lost.set(loss_.lost());
    rx_bytes_ += frame_bytes;
  }
  if (frame.type == FrameType::kBye) {
    greet(now);  // it may come back at once
    return Drop::kNone;
  }
  last_heard_ = now;
  if (state_ == ClientState::kServerDead) state_ = ClientState::kJoined;
  return Drop::kNone;
}

Drop ClientEngine::on_welcome(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept {
  const wire::WelcomeBody& body = frame.welcome;
  if (body.client_id.host() != config_.client_id) return Drop::kUnexpectedType;
  const std::uint64_t nb_pages = body.nb_pages.host();
  const std::size_t nb_fragments = body.nb_fragments;
  if (!slot_of_.empty() && nb_pages != slot_of_.size()) return Drop::kBadField;
  server_mtu_bytes_ = body.mtu_bytes.host();
  if (wire::fragment_stride(nb_fragments) + sizeof(wire::Header) + sizeof(wire::PageBody) >
      config_.mtu_bytes) {
    state_ = ClientState::kMtuTooSmall;
    return Drop::kNone;
  }
  if (slot_of_.empty()) slot_of_.resize(nb_pages);
  if (nb_fragments > 1 && reassembler_.capacity() < config_.partial_pages)
    reassembler_ = Reassembler{config_.partial_pages};
  if (frame.incarnation != identity_.incarnation) on_incarnation(frame, now);
  server_ = src;
  report_interval_ = std::chrono::microseconds{body.report_interval_us.host()};
  state_ = ClientState::kJoined;
  last_heard_ = now;
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
    const double spread = prng_.uniform() * static_cast<double>(kRestartSpread.count());
    timers_.arm(id, now + Nanos{static_cast<std::int64_t>(spread)});
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
  stats_.rx_pages.add(1);
  const Gfn page{frame.page.gfn.host()};
  const std::uint32_t slot = slot_of_[page.value];
  const bool demanded = slot != 0 && flights_[slot - 1].priority == Priority::kDemand;
  if (slot == 0) stats_.rx_unasked.add(1);
  finish(page, now);
  return PageArrival{page, bytes.first<kPageSize>(), demanded};
}

void ClientEngine::on_duplicate(const wire::Frame& frame) noexcept {
  stats_.rx_duplicates.add(1);
  forget(Gfn{frame.page.gfn.host()});
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
    const std::uint32_t slot = slot_of_[p];
    if (slot == 0) continue;
    demanded |= flights_[slot - 1].priority == Priority::kDemand;
    finish(Gfn{p}, now);
  }
  return demanded;
}

// --- flights ---------------------------------------------------------------------------------

bool ClientEngine::want(Gfn page, Priority priority, Nanos now) noexcept {
  if (const std::uint32_t slot = slot_of_[page.value]; slot != 0) {
    Flight& flight = flights_[slot - 1];
    if (flight.priority == Priority::kPrefetch && priority == Priority::kDemand) {
      flight.priority = Priority::kDemand;  // raised: tell the server too
      flight.first_asked = now;
      if (nb_demands_++ == 0) waiting_since_ = now;
      stats_.asked_demand.add(1);
      queue(slot - 1, now);
    }
    return true;
  }
  if (free_.empty() && !make_room(priority)) return false;
  const std::uint32_t id = free_.back();
  free_.pop_back();
  flights_[id] = {.page = page, .first_asked = now, .priority = priority, .used = true};
  slot_of_[page.value] = id + 1;
  if (priority == Priority::kDemand && nb_demands_++ == 0) waiting_since_ = now;
  (priority == Priority::kDemand ? stats_.asked_demand : stats_.asked_prefetch).add(1);
  stats_.inflight.add(1);
  queue(id, now);
  return true;
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
  // The queue may be full of stale entries: try again soon.
  if (!flight.to_send) timers_.arm(id, now + config_.rto.min);
}

void ClientEngine::forget(Gfn page) noexcept {
  if (const std::uint32_t slot = slot_of_[page.value]; slot != 0) release(slot - 1);
}

void ClientEngine::finish(Gfn page, Nanos now) noexcept {
  const std::uint32_t slot = slot_of_[page.value];
  if (slot == 0) return;
  const Flight& flight = flights_[slot - 1];
  if (flight.attempts == 1) {  // Karn: an answer to a repeated question says nothing
    RtoEstimator& rto = rto_[static_cast<std::size_t>(flight.priority)];
    rto.sample(now - flight.first_asked);
    stats_.srtt_us.set(micros(rto_[0].srtt()));
  }
  release(slot - 1);
}

void ClientEngine::release(std::uint32_t id) noexcept {
  Flight& flight = flights_[id];
  if (flight.priority == Priority::kDemand) --nb_demands_;
  timers_.cancel(id);
  slot_of_[flight.page.value] = 0;
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
  flight.timed_out = flight.attempts > 0;
  queue(id, now);
}

// --- frames out ------------------------------------------------------------------------------

void ClientEngine::expire(Nanos now) noexcept {
  timers_.expire(now, [&](std::uint32_t id) { on_timer(id, now); });
  watch_server(now);
}

bool ClientEngine::has_output(Nanos now) const noexcept {
  if (state_ == ClientState::kMtuTooSmall) return false;
  if (now >= next_hello_) return true;
  if (slot_of_.empty()) return false;  // not welcomed yet
  return !send_queues_[0].empty() || !send_queues_[1].empty() || now >= next_report_;
}

std::size_t ClientEngine::next(std::span<std::byte> out, Nanos now) noexcept {
  if (!has_output(now)) return 0;
  if (now >= next_hello_) return write_hello(out, now);
  return write_request(out, now);
}

void ClientEngine::watch_server(Nanos now) noexcept {
  if (state_ == ClientState::kJoining && waiting_since_ == kNever) waiting_since_ = now;
  if (!waiting() || state_ == ClientState::kMtuTooSmall) return;
  const Nanos silent = now - std::max(last_heard_, waiting_since_);
  if (silent >= config_.silence) greet(now);
  if (silent >= config_.give_up && state_ != ClientState::kServerDead) {
    state_ = ClientState::kServerDead;
    stats_.server_dead.add(1);
  }
}

void ClientEngine::greet(Nanos now) noexcept {
  if (next_hello_ == Nanos::max()) next_hello_ = now;  // else HELLO is being repeated already
}

std::size_t ClientEngine::write_hello(std::span<std::byte> out, Nanos now) noexcept {
  const double jitter = 1 + prng_.uniform() / 4;
  next_hello_ = now + Nanos{static_cast<std::int64_t>(
                          static_cast<double>(config_.hello_interval.count()) * jitter)};
  stats_.tx_hellos.add(1);
  return wire::write_hello(
      out, identity_, config_.server.value_or(kBroadcast), config_.mac,
      {.client_id = config_.client_id, .mtu_bytes = config_.mtu_bytes, .reserved = {}});
}

std::size_t ClientEngine::write_request(std::span<std::byte> out, Nanos now) noexcept {
  std::array<wire::WantEntry, wire::kMaxWants> wants;
  const std::size_t nb_wants = collect_wants(std::span{wants}.first(max_wants()), now);
  if (nb_wants == 0 && now < next_report_) return 0;  // the queues held stale entries only
  next_report_ = std::max(next_report_, now + report_interval_);
  stats_.tx_requests.add(1);
  return wire::write_request(out, identity_, server_, config_.mac,
                             {.client_id = config_.client_id, .report = report(now)},
                             std::span{wants}.first(nb_wants));
}

/// A REQUEST must fit both ports: a frame above its MTU jams a kernel socket's ring for ever.
std::size_t ClientEngine::max_wants() const noexcept {
  constexpr std::size_t kFixed = sizeof(wire::Header) + sizeof(wire::RequestBody);
  const std::size_t mtu = std::min(config_.mtu_bytes, server_mtu_bytes_);
  const std::size_t room = mtu > kFixed ? (mtu - kFixed) / sizeof(wire::WantEntry) : 0;
  return std::clamp<std::size_t>(room, 1, wire::kMaxWants);
}

std::size_t ClientEngine::collect_wants(std::span<wire::WantEntry> wants, Nanos now) noexcept {
  std::size_t nb_wants = 0;
  for (std::size_t priority = 0; priority < send_queues_.size(); ++priority) {
    while (!send_queues_[priority].empty()) {
      const std::uint32_t id = send_queues_[priority].front();
      const Flight& flight = flights_[id];
      if (!flight.used || !flight.to_send ||
          static_cast<std::size_t>(flight.priority) != priority) {
        send_queues_[priority].pop();
        continue;
      }
      const wire::WantEntry entry{.first = flight.page.value,
                                  .nb_pages = std::uint16_t{1},
                                  .priority = static_cast<std::uint8_t>(priority),
                                  .flags = flight.timed_out ? wire::kWantRetry : std::uint8_t{0},
                                  .fragments = reassembler_.missing(flight.page),
                                  .reserved = {}};
      if (nb_wants > 0 && extends(wants[nb_wants - 1], entry)) {
        wants[nb_wants - 1].nb_pages =
            static_cast<std::uint16_t>(wants[nb_wants - 1].nb_pages.host() + 1);
      } else {
        if (nb_wants == wants.size()) return nb_wants;
        wants[nb_wants++] = entry;
      }
      send_queues_[priority].pop();
      mark_sent(id, now);
    }
  }
  return nb_wants;
}

void ClientEngine::mark_sent(std::uint32_t id, Nanos now) noexcept {
  Flight& flight = flights_[id];
  if (flight.timed_out) stats_.retries.add(1);
  if (flight.attempts == 0) flight.first_asked = now;
  flight.to_send = false;
  const Nanos rto = rto_[static_cast<std::size_t>(flight.priority)].rto(flight.attempts);
  const double jitter =
      1 + prng_.uniform() / 4;  // hosts that lost the same frame do not ask as one
  timers_.arm(id,
              now + Nanos{static_cast<std::int64_t>(static_cast<double>(rto.count()) * jitter)});
  if (flight.attempts < 255) ++flight.attempts;
}

wire::ReportBody ClientEngine::report(Nanos now) const noexcept {
  return {.clock_us = micros(now),
          .rx_bytes = rx_bytes_,
          .rx_frames = loss_.received(),
          .lost = loss_.lost(),
          .srtt_us = static_cast<std::uint32_t>(micros(rto_[0].srtt())),
          .rttvar_us = static_cast<std::uint32_t>(micros(rto_[0].rttvar()))};
}

std::size_t ClientEngine::write_bye(std::span<std::byte> out) const noexcept {
  return wire::write_bye(out, identity_, server_, config_.mac, config_.client_id, 0, 0);
}

Nanos ClientEngine::deadline(Nanos now) const noexcept {
  if (state_ == ClientState::kMtuTooSmall) return Nanos::max();
  if (!send_queues_[0].empty() || !send_queues_[1].empty()) return now;
  Nanos next = std::min(next_hello_, timers_.next_deadline());
  if (!slot_of_.empty()) next = std::min(next, next_report_);
  if (waiting() && state_ != ClientState::kServerDead) {
    const Nanos heard = std::max(last_heard_, waiting_since_);
    next = std::min(next, heard + config_.give_up);
    if (next_hello_ == Nanos::max()) next = std::min(next, heard + config_.silence);
  }
  return std::max(now, next);
}

}  // namespace snowfabric
