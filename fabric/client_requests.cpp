// SPDX-License-Identifier: BSD-3-Clause
// The sending half of the client engine: HELLO, REQUEST, and when the next one is due.
#include <algorithm>
#include <utility>

#include "fabric/client_engine.hpp"

namespace snowfabric {
namespace {

/// Between reports that have nothing to tell.
constexpr Nanos kQuietInterval = std::chrono::milliseconds{500};

/// Whether `next` is the page behind `run` and otherwise alike.
bool extends(const wire::WantEntry& run, const wire::WantEntry& next) noexcept {
  return run.nb_pages.host() < wire::kMaxWantPages &&
         run.first.host() + run.nb_pages.host() == next.first.host() &&
         run.priority == next.priority && run.flags == next.flags && run.fragments == 0 &&
         next.fragments == 0;
}

}  // namespace

void ClientEngine::expire(Nanos now) noexcept {
  const Nanos gap = now - std::exchange(expired_at_, now);
  if (const Nanos most = std::min(config_.silence, config_.give_up / 4); gap > most) [[unlikely]]
    forgive(gap - most, now);
  timers_.expire(now, [&](std::uint32_t id) { on_timer(id, now); });
  watch_server(now);
}

bool ClientEngine::has_output(Nanos now) const noexcept {
  if (state_ == ClientState::kMtuTooSmall) return false;
  if (now >= next_hello_) return true;
  if (nb_pages_ == 0) return false;  // not welcomed yet
  return !send_queues_[0].empty() || !send_queues_[1].empty() || now >= next_report_;
}

std::size_t ClientEngine::next(std::span<std::byte> out, Nanos now) noexcept {
  if (!has_output(now)) return 0;
  if (now >= next_hello_) return write_hello(out, now);
  return write_request(out, now);
}

/// Time passes too where this host stands still, suspended or starved: nobody was asked in it, and
/// nobody is given up for it.
void ClientEngine::forgive(Nanos standstill, Nanos now) noexcept {
  const auto later = [&](Nanos since) { return std::min(since + standstill, now); };
  if (waiting_since_ != kNever) waiting_since_ = later(std::max(last_heard_, waiting_since_));
  for (Flight& flight : flights_) flight.demanded_since = later(flight.demanded_since);
}

void ClientEngine::watch_server(Nanos now) noexcept {
  if (state_ == ClientState::kJoining && waiting_since_ == kNever) waiting_since_ = now;
  if (!waiting() || state_ == ClientState::kMtuTooSmall) return;
  const Nanos silent = now - std::max(last_heard_, waiting_since_);
  if (silent >= config_.silence) greet(now);
  if (silent >= config_.repair_after && nb_pages_ != 0 && !asks_siblings_) {
    asks_siblings_ = true;
    greet(now);  // or their answers would hide the silence
    ask_again_soon(now);
  }
  if (silent >= config_.give_up && state_ != ClientState::kServerDead) {
    state_ = ClientState::kServerDead;
    greet(now);  // its demands end here, and with them all that would make us ask for it
    for (Flight& flight : flights_) see_overdue(flight, now);
    stats_.server_dead.add(1);
  }
}

void ClientEngine::greet(Nanos now) noexcept {
  if (next_hello_ != Nanos::max()) return;  // HELLO is being repeated already
  next_hello_ = now;
  nb_hellos_ = 0;
}

std::size_t ClientEngine::write_hello(std::span<std::byte> out, Nanos now) noexcept {
  const double jitter = 1 + prng_.uniform() / 4;
  next_hello_ = now + Nanos{static_cast<std::int64_t>(
                          static_cast<double>(config_.hello_interval.count()) * jitter)};
  stats_.tx_hellos.add(1);
  const bool to_all = !config_.server || nb_hellos_ % kHellosABroadcast == broadcast_phase_;
  ++nb_hellos_;
  return wire::write_hello(
      out, identity_, to_all ? kBroadcast : *config_.server, config_.mac,
      {.client_id = config_.client_id, .mtu_bytes = config_.mtu_bytes, .reserved = {}},
      abilities());
}

std::size_t ClientEngine::write_request(std::span<std::byte> out, Nanos now) noexcept {
  std::array<wire::WantEntry, wire::kMaxWants> wants;
  const std::size_t nb_wants = collect_wants(std::span{wants}.first(max_wants()), now);
  if (nb_wants == 0 && now < next_report_) return 0;  // the queues held stale entries only
  const bool has_news = loss_.received() != reported_frames_;
  schedule_report(nb_wants == 0 && nb_in_flight() == 0 && !has_news, now);
  stats_.tx_requests.add(1);
  const bool to_siblings = asks_siblings_ && nb_wants != 0;
  if (to_siblings) stats_.sibling_requests.add(1);
  return wire::write_request(
      out, identity_, to_siblings ? group_address(config_.image_id) : server_, config_.mac,
      {.client_id = config_.client_id, .report = report(now)}, std::span{wants}.first(nb_wants),
      static_cast<std::uint8_t>(abilities() | (to_siblings ? wire::kFlagSibling : 0)));
}

void ClientEngine::schedule_report(bool is_quiet, Nanos now) noexcept {
  is_quiet_ = is_quiet;
  reported_at_ = now;
  reported_frames_ = loss_.received();
  next_report_ = now + (is_quiet ? std::max(kQuietInterval, report_interval_) : report_interval_);
}

/// A report soon, so that the next tells of an interval that was busy; not all clients' at once.
void ClientEngine::end_quiet(Nanos now) noexcept {
  is_quiet_ = false;
  const bool is_due = now - reported_at_ >= report_interval_;
  const Nanos soon = is_due ? now + prng_.below(report_interval_) : reported_at_ + report_interval_;
  next_report_ = std::min(next_report_, soon);  // a WELCOME has it report at once
}

/// Flags that say what the server may send.
std::uint8_t ClientEngine::abilities() const noexcept {
  return config_.mtu_bytes >= wire::kPairMtuBytes ? wire::kFlagPairs : std::uint8_t{0};
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
  return {.clock_us = to_micros(now),
          .rx_bytes = rx_bytes_,
          .rx_frames = loss_.received(),
          .lost = loss_.lost(),
          .srtt_us = static_cast<std::uint32_t>(to_micros(rto_[0].srtt())),
          .rttvar_us = static_cast<std::uint32_t>(to_micros(rto_[0].rttvar()))};
}

std::size_t ClientEngine::write_bye(std::span<std::byte> out) const noexcept {
  return wire::write_bye(out, identity_, server_, config_.mac, config_.client_id, 0, 0);
}

Nanos ClientEngine::deadline(Nanos now) const noexcept {
  if (state_ == ClientState::kMtuTooSmall) return Nanos::max();
  if (!send_queues_[0].empty() || !send_queues_[1].empty()) return now;
  Nanos next = std::min(next_hello_, timers_.next_deadline());
  if (nb_pages_ != 0) next = std::min(next, next_report_);
  if (waiting() && state_ != ClientState::kServerDead) {
    const Nanos heard = std::max(last_heard_, waiting_since_);
    next = std::min(next, heard + config_.give_up);
    if (nb_pages_ != 0 && !asks_siblings_) next = std::min(next, heard + config_.repair_after);
    if (next_hello_ == Nanos::max()) next = std::min(next, heard + config_.silence);
  }
  return std::max(now, next);
}

}  // namespace snowfabric
