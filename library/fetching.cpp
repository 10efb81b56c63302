// SPDX-License-Identifier: BSD-3-Clause
#include "library/fetching.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>
#include <utility>

#include <fmt/format.h>

namespace snowfabric {
namespace {

using wire::Drop;
using wire::FrameType;
using wire::Priority;

constexpr unsigned kMaxBursts = 16;  // a turn
constexpr unsigned kMaxUndrained = 32 * kMaxBursts;
/// Of the engine's table; the rest is for demands. Those are no more at once than even a server at
/// its lowest rate delivers within ClientConfig::page_give_up, to a dozen clients.
constexpr std::size_t kPrefetchInFlight = 512, kDemandsInFlight = 512;
constexpr std::size_t kPrefetchRefill = 128;  // at least so many are asked for at once
constexpr std::size_t kRangesAgain = 64;      // looked for at once
alignas(64) constexpr std::array<std::byte, kPageSize> kZeroPage{};

ClientConfig completed(ClientConfig config, const Carrier& carrier) noexcept {
  config.mtu_bytes = carrier.mtu_bytes();
  config.mac = carrier.address();
  return config;
}

Nanos end_of(Nanos timeout, Nanos now) noexcept {
  return timeout == Fetching::kForever ? Fetching::kForever : now + timeout;
}

/// While it lives.
struct Raised {
  explicit Raised(bool& of) noexcept : flag{of} { flag = true; }
  ~Raised() { flag = false; }
  Raised(const Raised&) = delete;
  Raised& operator=(const Raised&) = delete;
  bool& flag;
};

}  // namespace

Fetching::Fetching(std::unique_ptr<Carrier> carrier, ClientConfig config, Callbacks callbacks,
                   Clock clock)
    : carrier_{std::move(carrier)},
      engine_{completed(config, *carrier_), stats_},
      callbacks_{std::move(callbacks)},
      idle_{carrier_->idle()},
      clock_{clock} {}

Result<void> Fetching::join(Nanos timeout) {
  if (running_) return fail(EBUSY, "join: inside of a callback");
  const Raised running{running_};
  const Nanos until = end_of(timeout, clock_());
  for (Nanos now = clock_();; now = clock_()) {
    if (stop_.exchange(false, std::memory_order_relaxed)) return fail(EINTR, "join: stopped");
    const bool done = turn(now) == 0;
    if (engine_.nb_pages() != 0) return on_join();
    if (auto error = trouble()) return std::unexpected(std::move(*error));
    if (now >= until)
      return engine_.refused()
                 ? fail(EUSERS, "join: the server's table of clients is full")
                 : fail(ETIMEDOUT, "join: no server of this image and epoch has answered");
    if (done) wait_for_frames(*carrier_, idle_, std::min(deadline(now), until) - now);
  }
}

/// Pages are taken from here on: before, its user cannot know how many there are.
Result<void> Fetching::on_join() {
  here_.words.resize((nb_pages() + 63) / 64);
  requested_.words.resize(here_.words.size());
  demanded_.words.resize(here_.words.size());
  joined_ = true;
  return {};
}

Result<void> Fetching::request(Gfn first, std::uint64_t nb_wanted, Priority priority) {
  if (!joined_) return fail(ENOTCONN, "request: not joined");
  if (first.value > nb_pages() || nb_wanted > nb_pages() - first.value)
    return fail(ERANGE, fmt::format("request: {} pages from {} on, of {}", nb_wanted, first.value,
                                    nb_pages()));
  bool is_news = false;
  for (Gfn page = first; page.value < first.value + nb_wanted; ++page.value) {
    if (here_.has(page) || demanded_.has(page)) continue;
    if (priority == Priority::kDemand)
      demanded_.add(page);
    else if (requested_.has(page))
      continue;
    is_news = true;
    if (requested_.has(page)) continue;
    requested_.add(page);
    ++nb_missing_;
  }
  if (!is_news) return {};
  first_word_ = std::min(first_word_, first.value / 64);
  // An image has no more pages than a range can name.
  to_ask_[static_cast<std::size_t>(priority)].push_back(
      {first, static_cast<std::uint32_t>(nb_wanted)});
  has_news_ = true;
  return {};
}

Result<void> Fetching::run(Nanos timeout) {
  if (running_) return fail(EBUSY, "run: inside of a callback");
  const Raised running{running_};
  const Nanos until = end_of(timeout, clock_());
  for (Nanos now = clock_();; now = clock_()) {
    if (stop_.exchange(false, std::memory_order_relaxed)) return fail(EINTR, "run: stopped");
    const bool done = turn(now) == 0;
    if (auto error = trouble()) return std::unexpected(std::move(*error));
    if (nb_missing_ == 0) return {};
    if (now >= until)
      return fail(ETIMEDOUT, fmt::format("run: {} pages are missing yet", nb_missing_));
    if (done) wait_for_frames(*carrier_, idle_, std::min(deadline(now), until) - now);
  }
}

Nanos Fetching::deadline(Nanos now) const noexcept {
  if (has_news_) return now;
  return carrier_->has_queued() ? now + Idle::kBlindSleep : engine_.deadline(now);
}

unsigned Fetching::turn(Nanos now) {
  unsigned nb_done = 0;
  bool drained = false;
  for (unsigned i = 0; i < kMaxBursts && !drained; ++i) {
    const unsigned nb_received = receive(now);
    nb_done += nb_received;
    drained = nb_received < Carrier::kBurst;
    if (drained) break;
    ++nb_undrained_;
    if (runs_dry()) break;
  }
  // What waits in the socket may be what would be asked for again; but it may never end.
  if (drained || nb_undrained_ >= kMaxUndrained) {
    nb_undrained_ = 0;
    ask(now);
  } else if (runs_dry()) {
    ask_for(Priority::kDemand, now);  // else they would wait behind these
    ask_for(Priority::kPrefetch, now);
  }
  nb_done += send(now);
  if (nb_done != 0) idle_.hit();
  return nb_done;
}

// --- receive ---------------------------------------------------------------------------------

unsigned Fetching::receive(Nanos now) {
  const auto frames = carrier_->receive();
  for (const auto& received : frames) on_frame(received, now);
  return static_cast<unsigned>(frames.size());
}

void Fetching::on_frame(const Carrier::Received& received, Nanos now) {
  wire::Frame frame;
  Drop why = wire::parse(received.payload, frame);
  if (why == Drop::kNone) why = engine_.on_frame(frame, received.src, received.wire_bytes, now);
  if (why != Drop::kNone) [[unlikely]] {
    // What goes to the others before we have joined is no fault of theirs.
    if (joined_ || why != Drop::kUnexpectedType) drops_.count(why);
    return;
  }
  if (!joined_) return;
  if (frame.type == FrameType::kPage) {
    do on_page(frame, now);
    while (frame.next_page());
  }
  if (frame.type == FrameType::kZeros || frame.type == FrameType::kAbsent) on_ranges(frame, now);
}

void Fetching::on_page(const wire::Frame& frame, Nanos now) {
  const Gfn page{frame.page.gfn.host()};
  if (here_.has(page)) {
    engine_.on_duplicate(frame);
    return;
  }
  Drop why{};
  const auto arrival = engine_.take_page(frame, now, why);
  if (arrival) deliver(page, arrival->bytes);
  if (why != Drop::kNone) [[unlikely]]
    drops_.count(why);
}

void Fetching::on_ranges(const wire::Frame& frame, Nanos now) {
  for (std::size_t i = 0; i < frame.nb_ranges(); ++i) {
    const PageRange range = frame.range(i);
    engine_.take_range(frame.type, range, now);
    if (range.first.value >= nb_pages()) continue;
    const std::uint64_t end = std::min(range.first.value + range.nb_pages, nb_pages());
    for (Gfn page = range.first; page.value < end; ++page.value)
      if (frame.type == FrameType::kAbsent)
        give_up(page, "the server does not have it");
      else if (!here_.has(page))
        deliver(page, kZeroPage);
  }
}

void Fetching::deliver(Gfn page, std::span<const std::byte, kPageSize> bytes) {
  here_.add(page);
  static_cast<void>(take_off(page));
  callbacks_.on_page(page, bytes);
}

/// @return whether it was requested
bool Fetching::take_off(Gfn page) noexcept {
  if (!requested_.has(page)) return false;
  requested_.remove(page);
  demanded_.remove(page);
  --nb_missing_;
  return true;
}

void Fetching::give_up(Gfn page, const char* why) {
  if (!take_off(page)) return;
  if (given_up_.nb_pages++ == 0) given_up_ = {.first = page, .why = why, .nb_pages = 1};
  if (callbacks_.on_unavailable) callbacks_.on_unavailable(page);
}

/// What a caller must know now.
std::optional<Error> Fetching::trouble() {
  if (const GivenUp pages = std::exchange(given_up_, {}); pages.nb_pages != 0)
    return Error{ENODATA, fmt::format("page {}: {} ({} of them)", pages.first.value, pages.why,
                                      pages.nb_pages)};
  if (engine_.state() == ClientState::kMtuTooSmall)
    return Error{EMSGSIZE,
                 fmt::format("the server's frames, of an MTU of {}, do not fit ours of {}",
                             engine_.server_mtu_bytes(), carrier_->mtu_bytes())};
  const bool dead = engine_.state() == ClientState::kServerDead && nb_missing_ != 0;
  if (!dead || std::exchange(death_reported_, true)) return std::nullopt;
  return Error{EHOSTDOWN, "the server is silent"};
}

// --- ask -------------------------------------------------------------------------------------

void Fetching::ask(Nanos now) {
  has_news_ = false;
  if (engine_.state() != ClientState::kServerDead) see_unanswered();
  ask_for(Priority::kDemand, now);
  if (runs_dry()) ask_for(Priority::kPrefetch, now);
  const bool all_asked = to_ask_[0].empty() && to_ask_[1].empty();
  if (all_asked && nb_missing_ > engine_.nb_demands() &&
      engine_.nb_in_flight() == engine_.nb_demands())
    look_again();
  engine_.await_prefetch(nb_missing_ != 0, now);
  engine_.expire(now);
}

/// Whether so much of what is prefetched has come that the server needs to know of more.
bool Fetching::runs_dry() const noexcept {
  const std::size_t nb_in_flight = engine_.nb_in_flight(), nb_demands = engine_.nb_demands();
  return !to_ask_[1].empty() && nb_in_flight < kPrefetchInFlight &&
         nb_in_flight - nb_demands + kPrefetchRefill <= kPrefetchInFlight;
}

/// What a live server does not deliver; a dead one may come back.
void Fetching::see_unanswered() {
  death_reported_ = false;
  std::vector<Gfn> overdue;
  engine_.for_each_unanswered([&](Gfn page) { overdue.push_back(page); });
  for (const Gfn page : overdue) {
    engine_.forget(page);
    give_up(page, "the server lives and does not deliver it");
  }
}

/// As many as there is room for.
void Fetching::ask_for(Priority wanted, Nanos now) noexcept {
  auto& ranges = to_ask_[static_cast<std::size_t>(wanted)];
  while (!ranges.empty() && ask_for_range(ranges.front(), wanted, now)) ranges.pop_front();
}

/// @return whether the whole range was asked for
bool Fetching::ask_for_range(PageRange& range, Priority wanted, Nanos now) noexcept {
  for (; range.nb_pages > 0; ++range.first.value, --range.nb_pages) {
    if (!requested_.has(range.first)) continue;
    if (wanted == Priority::kPrefetch ? engine_.nb_in_flight() >= kPrefetchInFlight
                                      : engine_.nb_demands() >= kDemandsInFlight)
      return false;
    if (!engine_.want(range.first, wanted, now)) return false;
  }
  return true;
}

/// Prefetched pages that were lost again and again, or displaced, the engine has left: somebody
/// waits for them now. All before the first word is here.
void Fetching::look_again() {
  auto& demands = to_ask_[0];
  while (first_word_ < requested_.words.size() && requested_.words[first_word_] == 0) ++first_word_;
  for (std::size_t i = first_word_; i < requested_.words.size() && demands.size() < kRangesAgain;
       ++i)
    for (std::uint64_t word = requested_.words[i]; word != 0; word &= word - 1) {
      const Gfn page{i * 64 + static_cast<unsigned>(std::countr_zero(word))};
      if (!engine_.demanded(page)) demands.push_back({page, 1});
    }
  has_news_ = !demands.empty();
}

// --- send ------------------------------------------------------------------------------------

unsigned Fetching::send(Nanos now) noexcept {
  while (engine_.has_output(now)) {
    const auto room = carrier_->room();
    if (room.empty()) break;
    const std::size_t nb_bytes = engine_.next(room, now);
    if (nb_bytes == 0) break;
    carrier_->push(nb_bytes, {});
  }
  return static_cast<unsigned>(carrier_->flush());
}

void Fetching::leave() noexcept {
  if (engine_.state() != ClientState::kJoined || carrier_->room().empty()) return;
  carrier_->push(engine_.write_bye(carrier_->room()), {});
  carrier_->flush();
}

}  // namespace snowfabric
