// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/server_engine.hpp"

#include <algorithm>
#include <bit>

namespace snowfabric {
namespace {

using wire::Drop;
using wire::FrameType;

constexpr Nanos kTick{std::chrono::milliseconds{10}};  // housekeeping: rate, window, dead clients
constexpr Nanos kQuietTick{std::chrono::milliseconds{100}};  // the same, when nobody says anything
constexpr std::size_t kControlQueue = 1024;
constexpr std::size_t kPageQueue = 65'536;  // at least; of larger images a quarter of the pages
constexpr double kDemandDecay = 0.9;        // a tick
constexpr std::uint64_t kMaxIntervalUs = 3'600'000'000;  // of a report that can be believed

Nanos micros(std::uint32_t us) noexcept { return std::chrono::microseconds{us}; }

/// What the bucket holds. Of a shallow one a turn that took longer than it costs the rest.
std::size_t burst_of(const ServerConfig& config, double bytes_per_s) noexcept {
  const double held = bytes_per_s * std::chrono::duration<double>(config.burst_time).count();
  return std::max(config.burst_bytes, static_cast<std::size_t>(held));
}

PageQueue queue_of(std::uint64_t nb_pages) {
  return PageQueue{std::min(nb_pages, std::max(nb_pages / 4, kPageQueue))};
}

}  // namespace

ServerEngine::ServerEngine(const ServerConfig& config, const ImageView& image, ServerStats& stats)
    : config_{config},
      image_{image},
      stats_{stats},
      identity_{image.image_id, image.epoch, config.incarnation, image.space},
      group_{group_address(image.image_id)},
      nb_fragments_{wire::fragments_for_mtu(config.mtu_bytes)},
      all_fragments_{static_cast<std::uint8_t>((1U << nb_fragments_) - 1)},
      clients_{config.max_clients},
      pages_(image.nb_pages),
      queues_{queue_of(image.nb_pages), queue_of(image.nb_pages)},
      control_{kControlQueue},
      bucket_{config.flow.initial_bytes_per_s, burst_of(config, config.flow.initial_bytes_per_s)},
      push_bucket_{config.push_bytes_per_s, config.burst_bytes},
      end_game_{config.end_game, 0},
      window_{config.initial_window} {
  nb_data_pages_ = image.nb_pages;
  for (const std::uint64_t word : image.zero_words)
    nb_data_pages_ -= static_cast<unsigned>(std::popcount(word));
  end_game_ = EndGame{config.end_game, nb_data_pages_};
}

Drop ServerEngine::on_frame(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept {
  if (frame.image_id != image_.image_id) return Drop::kForeignImage;
  if (frame.epoch != image_.epoch) return Drop::kStaleEpoch;
  if (frame.space != image_.space) return Drop::kOutOfRange;
  next_tick_ = std::min(next_tick_, now + kTick);
  switch (frame.type) {
    case FrameType::kHello: return on_hello(frame, src, now);
    case FrameType::kRequest: return on_request(frame, src, now);
    case FrameType::kBye: {
      const auto who = clients_.find(frame.bye.client_id.host());
      if (who == ClientTable::kNone) return Drop::kUnexpectedType;
      clients_.erase(who);
      stats_.leaves.add(1);
      return Drop::kNone;
    }
    default: return Drop::kUnexpectedType;
  }
}

// --- members ---------------------------------------------------------------------------------

ClientTable::Index ServerEngine::join(std::uint64_t client_id, const MacAddr& src,
                                      Nanos now) noexcept {
  auto who = clients_.find(client_id);
  if (who == ClientTable::kNone) {
    if (clients_.full()) {
      stats_.clients_refused.add(1);
      push_control({.type = FrameType::kBye, .dst = src, .client_id = client_id});
      return ClientTable::kNone;
    }
    Client client{.id = client_id,
                  .joined = now,
                  .flow = FlowEstimate{config_.flow, bucket_.rate()},
                  .end_game_mark = end_game_.mark()};
    who = clients_.insert(client);
    newest_join_ = now;
    stats_.joins.add(1);
  }
  clients_[who].mac = src;
  clients_[who].last_heard = now;
  push_control({.type = FrameType::kWelcome, .dst = src, .client_id = client_id});
  return who;
}

bool ServerEngine::tag(std::uint64_t client_id) noexcept {
  const auto who = clients_.find(client_id);
  if (who == ClientTable::kNone) return false;
  clients_[who].flow.tag();
  return true;
}

Drop ServerEngine::on_hello(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept {
  stats_.rx_hellos.add(1);
  const auto who = join(frame.hello.client_id.host(), src, now);
  if (who == ClientTable::kNone) return Drop::kUnexpectedType;
  take_abilities(clients_[who], frame);
  return Drop::kNone;
}

void ServerEngine::take_abilities(Client& client, const wire::Frame& frame) noexcept {
  client.takes_pairs = (frame.flags & wire::kFlagPairs) != 0;
  if (!client.takes_pairs) pairs_ = false;
}

Drop ServerEngine::on_request(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept {
  const std::uint64_t id = frame.request.client_id.host();
  const bool to_us = frame.incarnation == identity_.incarnation;
  auto who = clients_.find(id);
  if (who == ClientTable::kNone || !to_us) who = join(id, src, now);
  if (who == ClientTable::kNone) return Drop::kUnexpectedType;
  stats_.rx_requests.add(1);
  Client& client = clients_[who];
  client.mac = src;  // an earlier frame may have been forged, or its port another
  client.last_heard = now;
  take_abilities(client, frame);
  if (to_us) take_report(client, frame.request.report);
  for (std::size_t i = 0; i < frame.nb_wants(); ++i) {
    const wire::WantEntry entry = frame.want(i);
    const std::uint64_t first = entry.first.host();
    const std::uint64_t nb_pages = entry.nb_pages.host();
    const std::uint64_t inside =
        first >= image_.nb_pages ? 0 : std::min(nb_pages, image_.nb_pages - first);
    if (inside < nb_pages)
      answer_absent(src, {Gfn{first + inside}, static_cast<std::uint32_t>(nb_pages - inside)});
    // What an earlier life of ours was asked may be a replay; with WELCOME a client asks again.
    if (!to_us) continue;
    stats_.wants.add(inside);
    if ((entry.flags & wire::kWantRetry) != 0) stats_.wants_retried.add(inside);
    for (std::uint64_t page = first; page < first + inside;) {
      // A zero run is asked for and answered as its first page.
      const PageRange run =
          image_.is_zero(Gfn{page}) ? zero_run(Gfn{page}) : PageRange{Gfn{page}, 1};
      on_want(who, run.first, entry, now);
      page = run.first.value + run.nb_pages;
    }
    client.recent_demand += static_cast<double>(inside);
  }
  return Drop::kNone;
}

/// Also of reports too young to say anything of the rate.
void ServerEngine::take_loss(Client& client, const wire::ReportBody& report) noexcept {
  const std::uint32_t received = report.rx_frames.host(), missed = report.lost.host();
  client.frames_received += received - client.last_received;
  client.frames_missed += static_cast<std::int32_t>(missed - client.last_missed);
  client.last_received = received;
  client.last_missed = missed;
}

/// Whether pushed pages filled links at the rate that is theirs: nobody waits for them, and so
/// asks for fewer the more are lost.
bool ServerEngine::was_push_limited_since(const Client& client) const noexcept {
  return config_.push_bytes_per_s > 0 && push_bucket_.was_limit_since(client.pushed_at_report);
}

void ServerEngine::take_report(Client& client, const wire::ReportBody& report) noexcept {
  take_loss(client, report);
  const wire::ReportBody& last = client.last_report;
  const std::uint64_t elapsed_us = report.clock_us.host() - last.clock_us.host();
  // A clock that went back or leapt cannot be believed: this report is a new base line.
  if (elapsed_us > kMaxIntervalUs) client.reported = false;
  const Nanos duration = std::chrono::microseconds{client.reported ? elapsed_us : 0};
  if (client.reported && duration < config_.report_interval * 9 / 10)
    return;  // too short to say anything: the next one covers it
  // Falls when frames given up for lost arrive late after all.
  const auto lost = static_cast<std::int32_t>(report.lost.host() - last.lost.host());
  if (client.reported)
    client.flow.on_interval({.duration = duration,
                             .rx_bytes = report.rx_bytes.host() - last.rx_bytes.host(),
                             .rx_frames = report.rx_frames.host() - last.rx_frames.host(),
                             .lost = static_cast<std::uint32_t>(std::max(lost, 0)),
                             .bucket_limited = bucket_.was_limit_since(client.sent_at_report),
                             .push_limited = was_push_limited_since(client)});
  client.last_report = report;
  client.reported = true;
  client.sent_at_report = bucket_.totals();
  client.pushed_at_report = push_bucket_.totals();
  client.srtt = micros(report.srtt_us.host());
  client.rttvar = micros(report.rttvar_us.host());
}

// --- wants -----------------------------------------------------------------------------------

void ServerEngine::on_want(ClientTable::Index who, Gfn page, const wire::WantEntry& entry,
                           Nanos now) noexcept {
  PageSlot& slot = pages_[page];
  const bool retry = (entry.flags & wire::kWantRetry) != 0;
  // A retry passes the window, but not an answer so young that its sender cannot have missed it.
  // Who joined after the answer has missed it.
  if (now - pages_.last_multicast(slot) < (retry ? retry_guard_ : window_) && !is_late(who, slot)) {
    stats_.lockstep_hits.add(1);
    return;
  }
  if (!enqueue(page, entry.priority)) return;
  std::uint8_t fragments = entry.fragments & all_fragments_;
  if (fragments == 0) fragments = all_fragments_;  // none named, or none that exists
  const bool was_pending = slot.pending;
  if (was_pending) {
    stats_.wants_merged.add(1);
    slot.fragments |= fragments;
  } else {
    slot.pending = true;
    slot.shared = slot.missed = false;
    slot.fragments = fragments;
  }
  if (retry && PageTable::was_multicast(slot)) slot.missed = true;
  const bool asked_by_another = slot.last_client != who && slot.last_client != ClientTable::kNone;
  // Whoever asks after another was answered alone is not the last one, either: one more is for all.
  if (asked_by_another && (was_pending || slot.sent_to_one)) slot.shared = true;
  slot.last_client = who;
}

/// @return false: no room, and it is not pending; whoever wants it will ask again
bool ServerEngine::enqueue(Gfn page, std::uint8_t priority) noexcept {
  PageSlot& slot = pages_[page];
  const std::uint8_t bit = static_cast<std::uint8_t>(1U << priority);
  if ((slot.queued & bit) == 0) {
    if (!queues_[priority].push(static_cast<std::uint32_t>(page.value))) {
      stats_.wants_overflow.add(1);
      return slot.pending;
    }
    slot.queued = (slot.queued | bit) & 3U;
  }
  return true;
}

/// It joined when the page had gone out: what it asks for the others have.
bool ServerEngine::is_late(ClientTable::Index who, const PageSlot& slot) noexcept {
  return PageTable::was_multicast(slot) && pages_.last_multicast(slot) < clients_[who].joined;
}

void ServerEngine::answer_absent(const MacAddr& dst, PageRange range) noexcept {
  stats_.wants_absent.add(range.nb_pages);
  push_control({.type = FrameType::kAbsent, .dst = dst, .range = range});
}

void ServerEngine::push_control(const ServerTx& tx) noexcept {
  if (!control_.push(tx)) stats_.control_overflow.add(1);
}

// --- housekeeping ----------------------------------------------------------------------------

void ServerEngine::tick(Nanos now) noexcept {
  pages_.age(now);
  GroupRate rate;
  double lost = 0, known = 0;
  double srtt = 0, window = 0, measured = 0;
  for (std::size_t i = clients_.size(); i-- > 0;) {
    const auto who = static_cast<ClientTable::Index>(i);
    Client& client = clients_[who];
    if (now - client.last_heard > config_.client_timeout) {
      clients_.erase(who);
      stats_.clients_timed_out.add(1);
      continue;
    }
    rate.add(client.flow, client.recent_demand);
    if (const double sent = client.frames_received + client.frames_missed;
        sent >= config_.flow.min_frames) {
      lost += client.frames_missed / sent;
      ++known;
    }
    client.recent_demand *= kDemandDecay;
    if (client.srtt > Nanos{0}) {
      srtt += static_cast<double>(client.srtt.count());
      window += static_cast<double>((client.srtt + 2 * client.rttvar).count());
      ++measured;
    }
  }
  pairs_ = config_.mtu_bytes >= wire::kPairMtuBytes &&
           std::ranges::all_of(clients_, &Client::takes_pairs);
  const auto members = static_cast<double>(clients_.size());
  nb_lacking_ = known > 0 ? lost / known * members : 0;
  if (members > 0) set_rate(rate.by(config_.flow.rule));
  if (measured > 0) set_window(window / measured, srtt / measured);
  update_end_game();
  next_tick_ = now + (rate.is_wanted() || has_wanted() || has_pushed() ? kTick : kQuietTick);
  stats_.clients.set(clients_.size());
  stats_.rate_bytes_per_s.set(static_cast<std::uint64_t>(bucket_.rate()));
  stats_.window_us.set(static_cast<std::uint64_t>(window_.count() / 1000));
}

void ServerEngine::set_rate(double bytes_per_s) noexcept {
  bucket_.set_rate(bytes_per_s);
  bucket_.set_burst(burst_of(config_, bytes_per_s));
}

void ServerEngine::set_window(double window_ns, double srtt_ns) noexcept {
  window_ = std::clamp(Nanos{static_cast<std::int64_t>(window_ns)}, config_.min_window,
                       config_.max_window);
  retry_guard_ = std::min(window_, Nanos{static_cast<std::int64_t>(srtt_ns / 2)});
}

void ServerEngine::update_end_game() noexcept {
  if (clients_.size() == 0) return;
  double coverage = 0;
  for (const Client& client : clients_) coverage += end_game_.covered_since(client.end_game_mark);
  const bool was_active = end_game_.active();
  end_game_.update(coverage / static_cast<double>(clients_.size()));
  if (end_game_.active() && !was_active) stats_.end_game_entered.add(1);
  stats_.end_game.set(end_game_.active() ? 1 : 0);
}

}  // namespace snowfabric
