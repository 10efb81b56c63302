// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/server_engine.hpp"

#include <algorithm>
#include <bit>
#include <utility>

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
constexpr double kLimitedShare = 0.75;  // of the granted bytes sent: the bucket was the limit

Nanos micros(std::uint32_t us) noexcept { return std::chrono::microseconds{us}; }

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
      bucket_{config.flow.initial_bytes_per_s, config.burst_bytes},
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
  const double granted = bucket_.granted() - client.granted_at_report;
  const double taken = bucket_.taken() - client.taken_at_report;
  if (client.reported)
    client.flow.on_interval({.duration = duration,
                             .rx_bytes = report.rx_bytes.host() - last.rx_bytes.host(),
                             .rx_frames = report.rx_frames.host() - last.rx_frames.host(),
                             .lost = static_cast<std::uint32_t>(std::max(lost, 0)),
                             .bucket_limited = taken >= kLimitedShare * granted});
  client.last_report = report;
  client.reported = true;
  client.granted_at_report = bucket_.granted();
  client.taken_at_report = bucket_.taken();
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

// --- sending ---------------------------------------------------------------------------------

bool ServerEngine::next(ServerTx& out, Nanos now) noexcept {
  if (now >= next_tick_) tick(now);
  bucket_.refill(now);
  if (!control_.empty()) {
    out = control_.pop();
    return true;
  }
  if (train_.fragments == 0)
    train_ = ahead_.fragments != 0 ? std::exchange(ahead_, {}) : next_train(now);
  if (train_.fragments == 0) return false;
  if (pairs_ && ahead_.fragments == 0) ahead_ = next_train(now);
  const bool pair = is_pair();
  if (!bucket_.take(train_frame_bytes(pair))) return false;
  send_from_train(out, pair);
  return true;
}

/// @return one without fragments: there is nothing to send
ServerEngine::Train ServerEngine::next_train(Nanos now) noexcept {
  Gfn page;
  return pop_wanted(page) || pop_pushed(page) ? train_of(page, now) : Train{};
}

/// Whether the page and the one after it go to the same place in one frame.
bool ServerEngine::is_pair() const noexcept {
  return pairs_ && ahead_.fragments != 0 && ahead_.dst == train_.dst && !train_.alone &&
         !ahead_.alone;
}

bool ServerEngine::pop_wanted(Gfn& page) noexcept {
  for (std::size_t priority = 0; priority < queues_.size(); ++priority) {
    while (!queues_[priority].empty()) {
      page = Gfn{queues_[priority].pop()};
      PageSlot& slot = pages_[page];
      slot.queued = slot.queued & ~(1U << priority) & 3U;
      if (slot.pending) return true;
    }
  }
  return false;
}

bool ServerEngine::pop_pushed(Gfn& page) noexcept {
  if (!config_.push || clients_.size() == 0) return false;
  while (push_cursor_ < image_.nb_pages) {
    page = Gfn{push_cursor_};
    const PageRange step = image_.is_zero(page) ? zero_run(page) : PageRange{page, 1};
    page = step.first;
    push_cursor_ = step.first.value + step.nb_pages;
    PageSlot& slot = pages_[page];
    if (PageTable::was_multicast(slot)) continue;
    slot.fragments = all_fragments_;
    slot.shared = true;  // pushed pages are for everybody, also in the end game
    stats_.tx_pages_pushed.add(1);
    return true;
  }
  return false;
}

ServerEngine::Train ServerEngine::train_of(Gfn page, Nanos now) noexcept {
  PageSlot& slot = pages_[page];
  const bool zero = image_.is_zero(page);
  // Missing fragments are a member's loss: the others have the page, or lost other fragments.
  const bool repair = slot.fragments != all_fragments_;
  const bool has_asker = clients_.valid(slot.last_client);
  // What went out is asked for by who lost it. Where those are several, one answer is for all.
  const bool several = nb_lacking_ >= 1 && has_asker && !is_late(slot.last_client, slot);
  const bool to_one =
      (end_game_.active() || repair) && !zero && !slot.shared && !several && has_asker;
  if (repair && several) slot.fragments = all_fragments_;  // they lack others, too
  const Train train{.page = page,
                    .fragments = zero ? std::uint8_t{1} : slot.fragments,
                    .multicast = !to_one,
                    .alone = zero || slot.missed,
                    .dst = to_one ? clients_[slot.last_client].mac : group_};
  slot.pending = false;
  if (!zero) {
    if (!PageTable::was_multicast(slot) && !slot.sent_to_one) stats_.pages_sent_once.add(1);
    if (!to_one && pages_.last_multicast(slot) <= newest_join_ && end_game_.on_new_multicast())
      update_end_game();
    if (repair) stats_.tx_pages_partial.add(1);
    (to_one ? stats_.tx_pages_unicast : stats_.tx_pages_multicast).add(1);
  }
  if (to_one)
    slot.sent_to_one = true;
  else
    pages_.went_to_all(slot, now);
  return train;
}

void ServerEngine::send_from_train(ServerTx& out, bool pair) noexcept {
  out = {.dst = train_.dst, .range = {train_.page, 1}};
  if (train_.multicast) {
    out.flags = wire::kFlagSequenced;
    out.seq = seq_++;
  }
  if (image_.is_zero(train_.page)) {
    out.type = FrameType::kZeros;
    out.range = zero_run(train_.page);
    stats_.tx_zero_pages.add(out.range.nb_pages);
    train_.fragments = 0;
    return;
  }
  out.type = FrameType::kPage;
  out.fragment = static_cast<std::uint8_t>(std::countr_zero(train_.fragments));
  train_.fragments &= static_cast<std::uint8_t>(train_.fragments - 1);
  if (!pair) return;
  out.second = std::exchange(ahead_, {}).page;
  stats_.tx_pairs.add(1);
}

PageRange ServerEngine::zero_run(Gfn page) const noexcept {
  // Clipped to an aligned block, so that every page of a run names the same run.
  static_assert(wire::kMaxRangePages % 64 == 0);
  const std::uint64_t block = page.value / wire::kMaxRangePages * wire::kMaxRangePages;
  const std::uint64_t block_end = std::min(block + wire::kMaxRangePages, image_.nb_pages);
  std::uint64_t first = page.value;
  while (first > block) {  // word by word: ones just below bit `first`
    const auto bit = (first - 1) % 64;
    const auto ones = std::countl_one(image_.zero_words[(first - 1) / 64] << (63 - bit));
    first -= static_cast<unsigned>(std::min<std::uint64_t>(static_cast<unsigned>(ones), bit + 1));
    if (static_cast<std::uint64_t>(ones) <= bit) break;
  }
  std::uint64_t end = page.value;
  while (end < block_end) {
    const auto bit = end % 64;
    const auto ones = std::countr_one(image_.zero_words[end / 64] >> bit);
    end += static_cast<unsigned>(ones);
    if (static_cast<std::uint64_t>(ones) < 64 - bit) break;
  }
  end = std::min(end, block_end);
  return {Gfn{first}, static_cast<std::uint32_t>(end - first)};
}

std::size_t ServerEngine::train_frame_bytes(bool pair) const noexcept {
  if (pair) return wire::kMaxFrameBytes + config_.frame_overhead_bytes;
  if (image_.is_zero(train_.page))
    return sizeof(wire::EthHdr) + sizeof(wire::Header) + sizeof(wire::RangeEntry) +
           config_.frame_overhead_bytes;
  const auto fragment = static_cast<std::size_t>(std::countr_zero(train_.fragments));
  return wire::kPageHeaderBytes + wire::fragment_bytes(fragment, nb_fragments_) +
         config_.frame_overhead_bytes;
}

ServerTx ServerEngine::bye() noexcept {
  return {.type = FrameType::kBye, .dst = group_, .flags = wire::kFlagSequenced, .seq = seq_++};
}

std::size_t ServerEngine::write(const ServerTx& tx, const MacAddr& src,
                                std::span<std::byte> out) const noexcept {
  switch (tx.type) {
    case FrameType::kPage:
      if (tx.second)
        return wire::write_pair_header(out, identity_, tx.dst, src, key_of(tx.range.first),
                                       key_of(*tx.second), tx.flags, tx.seq);
      return wire::write_page_header(out, identity_, tx.dst, src, tx.range.first,
                                     image_.crc32c[tx.range.first.value], tx.fragment,
                                     nb_fragments_, tx.flags, tx.seq);
    case FrameType::kWelcome:
      return wire::write_welcome(
          out, identity_, tx.dst, src,
          {.client_id = tx.client_id,
           .nb_pages = image_.nb_pages,
           .report_interval_us = static_cast<std::uint32_t>(config_.report_interval.count() / 1000),
           .mtu_bytes = config_.mtu_bytes,
           .nb_fragments = static_cast<std::uint8_t>(nb_fragments_),
           .reserved = 0});
    case FrameType::kBye:
      return wire::write_bye(out, identity_, tx.dst, src, tx.client_id, tx.flags, tx.seq);
    default:
      return wire::write_ranges(out, tx.type, identity_, tx.dst, src, {&tx.range, 1}, tx.flags,
                                tx.seq);
  }
}

Nanos ServerEngine::deadline(Nanos now) const noexcept {
  if (!control_.empty()) return now;
  return std::max(now, has_work() ? bucket_.ready_at() : next_tick_);
}

bool ServerEngine::has_work() const noexcept {
  return train_.fragments != 0 || ahead_.fragments != 0 || !queues_[0].empty() ||
         !queues_[1].empty() ||
         (config_.push && clients_.size() != 0 && push_cursor_ < image_.nb_pages);
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
    rate.add(client.flow.bytes_per_s(), client.recent_demand);
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
  if (members > 0) bucket_.set_rate(rate.by(config_.flow.rule));
  if (measured > 0) {
    window_ = std::clamp(Nanos{static_cast<std::int64_t>(window / measured)}, config_.min_window,
                         config_.max_window);
    retry_guard_ = std::min(window_, Nanos{static_cast<std::int64_t>(srtt / measured / 2)});
  }
  update_end_game();
  next_tick_ = now + (rate.is_wanted() || has_work() ? kTick : kQuietTick);
  stats_.clients.set(clients_.size());
  stats_.rate_bytes_per_s.set(static_cast<std::uint64_t>(bucket_.rate()));
  stats_.window_us.set(static_cast<std::uint64_t>(window_.count() / 1000));
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
