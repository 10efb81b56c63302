// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/host.hpp"

#include <algorithm>
#include <array>

namespace snowfabric {
namespace {

constexpr std::size_t kFaultBurst = 64;     // a guest and turn
constexpr std::size_t kMaxDeferred = 4096;  // of one guest; beyond, its faults stay with it
constexpr std::size_t kDeferredRoom = 2 * kMaxDeferred;      // faults, and installs put off
constexpr Nanos kRetryPause = std::chrono::milliseconds{5};  // after an install was put off
constexpr std::size_t kMaxTimed = 64;                        // faults under way whose time is taken

}  // namespace

Host::Host(ClientEngine& engine, HostStats& stats, std::uint32_t prefetch_pages,
           std::size_t buffer_pages, KeptImage* kept)
    : engine_{engine},
      stats_{stats},
      prefetch_pages_{prefetch_pages},
      kept_{kept},
      gathered_{buffer_pages} {
  retrying_.reserve(kDeferredRoom);
  recorded_.reserve(kMaxRecorded);
  waits_.reserve(kMaxTimed);
}

void Host::attach(GuestAdapter& guest) {
  guests_.push_back(&guest);
  deferred_.push_back({.guest = &guest, .pages = {}});
  deferred_.back().pages.reserve(kDeferredRoom);
  loads_.push_back({.guest = &guest});
  if (!guest.is_loader()) lead(loads_.back(), 0);
}

void Host::detach(const GuestAdapter& guest) noexcept {
  std::erase(guests_, &guest);
  std::erase_if(deferred_, [&guest](const Deferred& d) { return d.guest == &guest; });
  std::erase_if(loads_, [&guest](const Load& load) { return load.guest == &guest; });
  std::erase_if(completions_, [&guest](const Completion& c) { return c.guest == &guest; });
  std::erase_if(waits_, [&guest](const Wait& wait) { return wait.guest == &guest; });
  std::array<Gfn, kFaultBurst> orphans;
  for (std::size_t nb = orphans.size(); nb == orphans.size();) {  // forget() disturbs the walk
    nb = 0;
    engine_.for_each_demand([&](Gfn page) {
      if (nb < orphans.size() && !unsettled(page)) orphans[nb++] = page;
    });
    for (std::size_t i = 0; i < nb; ++i) engine_.forget(orphans[i]);
  }
}

// --- faults ----------------------------------------------------------------------------------

unsigned Host::poll_faults(Nanos now) noexcept {
  retry_deferred(now);
  fetch_some(now);
  give_some(now);
  engine_.await_prefetch(!completions_.empty(), now);
  if (!waits_.empty()) time_answered(now);
  unsigned nb_seen = 0;
  std::array<Gfn, kFaultBurst> faults;
  for (const Deferred& deferred : deferred_) {
    if (deferred.pages.size() + faults.size() > kMaxDeferred) continue;  // it keeps the rest
    const std::size_t nb_faults = deferred.guest->poll_faults(faults);
    for (std::size_t i = 0; i < nb_faults; ++i) on_fault(*deferred.guest, faults[i], now);
    nb_seen += static_cast<unsigned>(nb_faults);
  }
  return nb_seen;
}

/// A turn late at most, which is the precision of `now`.
void Host::time_answered(Nanos now) noexcept {
  std::erase_if(waits_, [now](const Wait& wait) {
    if (wait.guest->waits(wait.page)) return false;
    wait.guest->fault_took(now - wait.since);
    return true;
  });
}

/// All of them, so that a guest that cannot take its page holds up no other, and each time another
/// guest first: the first has what there is of room in the request table.
void Host::retry_deferred(Nanos now) noexcept {
  bool full = false, any = false;
  for (Deferred& deferred : deferred_) {
    if (deferred.pages.empty() || now < deferred.retry_at) continue;
    any = true;
    retrying_.swap(deferred.pages);
    for (const Gfn page : retrying_) full |= !retry(deferred, page, full, now);
    retrying_.clear();
  }
  if (any) std::ranges::rotate(deferred_, deferred_.begin() + 1);
}

/// Unless the page came meanwhile. @param full  of requests: no use in asking on
/// @return false: it is
bool Host::retry(Deferred& deferred, Gfn page, bool full, Nanos now) noexcept {
  GuestAdapter& guest = *deferred.guest;
  if (kept_ != nullptr && kept_->knows(page)) {
    if (guest.waits(page)) give_kept(guest, page, now);
    return true;
  }
  if (guest.presence().state(page) == PageState::kPresent) return true;
  if (!full && engine_.want(page, wire::Priority::kDemand, now)) return true;
  deferred.pages.push_back(page);
  return false;
}

void Host::on_fault(GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  record({page, 1});
  if (waits_.size() < kMaxTimed) waits_.push_back({&guest, page, now});
  const bool expected = follow(guest, page, now);
  if (gathered_.contains(page)) {
    stats_.fault_hits_buffer.add(1);
    flush(now);
    if (!guest.presence().absent(page)) return;
  }
  if (kept_ != nullptr && kept_->knows(page)) {
    stats_.fault_hits_kept.add(1);
    give_kept(guest, page, now);
    return;
  }
  want(guest, page, now);
  if (expected) return;  // its neighbours are in its lead, or clones did without them
  const std::uint32_t nb_more = guest.readahead(page, prefetch_pages_);
  const std::uint64_t end = std::min(page.value + 1 + nb_more, engine_.nb_pages());
  for (Gfn next{page.value + 1}; next.value < end; ++next.value) {
    if (engine_.in_flight(next) || !needs(next)) continue;
    if (!engine_.want(next, wire::Priority::kPrefetch, now)) return;
    stats_.prefetch_wanted.add(1);
  }
}

void Host::give_kept(GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  constexpr std::uint32_t kOne = 1;
  settle(guest, kept_->give(page, guest), {page, 1}, kOne, now);
}

// --- record ----------------------------------------------------------------------------------

/// Each page once, in the order in which some clone first had it.
void Host::record(PageRange pages) noexcept {
  if (is_recorded_.empty()) is_recorded_.resize(engine_.nb_pages());  // known since the join
  for (std::uint64_t p = pages.first.value; p < pages.first.value + pages.nb_pages; ++p) {
    if (is_recorded_[p]) continue;
    if (!recorded_.empty() && recorded_.back().first.value + recorded_.back().nb_pages == p)
      ++recorded_.back().nb_pages;
    else if (recorded_.size() < kMaxRecorded)
      recorded_.push_back({Gfn{p}, 1});
    else
      return;  // full: the first touches matter most
    is_recorded_[p] = true;
    stats_.recorded_pages.add(1);
  }
}

// --- requests there is no room for --------------------------------------------------------------

void Host::want(GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  if (engine_.want(page, wire::Priority::kDemand, now)) return;
  stats_.wants_deferred.add(1);
  defer(deferred_of(guest), page);
}

Host::Deferred& Host::deferred_of(const GuestAdapter& guest) noexcept {
  return *std::ranges::find(deferred_, &guest, &Deferred::guest);
}

/// Room is never short: poll_faults() leaves half of it, and no more are in flight.
void Host::defer(Deferred& deferred, Gfn page) noexcept {
  auto& pages = deferred.pages;
  if (pages.size() == pages.capacity() || std::ranges::find(pages, page) != pages.end()) return;
  pages.push_back(page);
}

// --- pages -----------------------------------------------------------------------------------

bool Host::lacking(Gfn page) const noexcept {
  return std::ranges::any_of(
      guests_, [page](const GuestAdapter* guest) { return guest->presence().absent(page); });
}

/// Whether somebody may still wait for the page: also a vCPU whose guest has claimed it meanwhile,
/// which the adapter wakes when it is offered the page.
bool Host::unsettled(Gfn page) const noexcept {
  return std::ranges::any_of(guests_, [page](const GuestAdapter* guest) {
    return guest->presence().state(page) != PageState::kPresent;
  });
}

bool Host::needs(Gfn page) const noexcept {
  const bool known = kept_ != nullptr ? kept_->knows(page) : !lacking(page);
  return engine_.demanded(page) || (!known && !gathered_.contains(page));
}

std::vector<PageRange> Host::inside(std::span<const PageRange> ranges) const {
  std::vector<PageRange> out;
  for (const PageRange& range : ranges)
    if (const PageRange part = inside(range); part.nb_pages != 0) out.push_back(part);
  return out;
}

PageRange Host::inside(PageRange range) const noexcept {
  const std::uint64_t end = engine_.nb_pages();
  if (range.first.value >= end) return {range.first, 0};
  const std::uint64_t most = std::min<std::uint64_t>(range.nb_pages, end - range.first.value);
  return {range.first, static_cast<std::uint32_t>(most)};
}

void Host::on_page(const PageArrival& arrival, Nanos now) noexcept {
  if (arrival.demanded) {
    install(arrival.page, arrival.bytes, now);
    flush(now);
    return;
  }
  if (gathered_.full()) flush(now);
  gathered_.add(arrival.page, arrival.bytes);
}

void Host::on_zeros(PageRange range, Nanos now) noexcept {
  // Asked for again, one page brings back the whole run; from what is kept each comes alone.
  const std::uint32_t most = kept_ != nullptr ? range.nb_pages : 1;
  if (kept_ != nullptr) kept_->put_zeros(range);
  for (GuestAdapter* guest : guests_) settle(*guest, guest->install_zeros(range), range, most, now);
}

void Host::flush(Nanos now) noexcept {
  gathered_.flush([&](Gfn first, std::span<const std::byte> pages) {
    stats_.bursts.add(1);
    stats_.burst_pages.add(pages.size() / kPageSize);
    install(first, pages, now);
  });
}

void Host::install(Gfn first, std::span<const std::byte> pages, Nanos now) noexcept {
  const PageRange range{first, static_cast<std::uint32_t>(pages.size() / kPageSize)};
  if (kept_ != nullptr) {
    stats_.keep_failed.add(kept_->put(first, pages));
    stats_.kept_pages.set(kept_->nb_kept());
    stats_.keep_overwrote.set(kept_->nb_overwritten());
  }
  if (!guests_.empty()) record(range);
  for (GuestAdapter* guest : guests_)
    settle(*guest, guest->install(first, pages), range, range.nb_pages, now);
}

/// What somebody waits for and was put off is asked for again a little later: rarer than worth a
/// buffer of its own, and at once it would only find the guest or the host as they are. The rest
/// comes with its own fault, unless it is of the working set.
/// @param most  pages to ask for
void Host::settle(GuestAdapter& guest, Install verdict, PageRange range, std::uint32_t most,
                  Nanos now) noexcept {
  if (verdict != Install::kAgain && verdict != Install::kNoMemory) return;
  load_again(guest);
  Deferred& deferred = deferred_of(guest);
  const std::uint64_t end = range.first.value + range.nb_pages;
  for (std::uint64_t p = range.first.value; p < end && most > 0; ++p) {
    if (!guest.waits(Gfn{p})) continue;
    --most;
    stats_.refetched_pages.add(1);
    if (now >= deferred.retry_at) deferred.retry_at = now + kRetryPause;  // not later with each
    defer(deferred, Gfn{p});
  }
}

// --- failure ---------------------------------------------------------------------------------

bool Host::fail_page(Gfn page) noexcept {
  bool settled = true, waited_for = false;
  for (GuestAdapter* guest : guests_)
    if (guest->waits(page)) {
      waited_for = true;
      settled &= guest->fail(page) != FailMeans::kAgain;
    }
  if (settled && waited_for) stats_.failed_pages.add(1);
  return settled;
}

void Host::fail_unanswered() noexcept {
  std::array<Gfn, kFaultBurst> pages;
  std::size_t nb_pages = 0;
  engine_.for_each_unanswered([&](Gfn page) {
    if (nb_pages < pages.size()) pages[nb_pages++] = page;  // the rest next turn
  });
  for (std::size_t i = 0; i < nb_pages; ++i)
    if (fail_page(pages[i])) engine_.forget(pages[i]);
}

void Host::fail(PageRange range, Nanos now) noexcept {
  range = inside(range);  // ABSENT may name pages that no guest has a bit for
  for (std::uint64_t p = range.first.value; p < range.first.value + range.nb_pages; ++p) {
    if (fail_page(Gfn{p})) continue;
    for (GuestAdapter* guest : guests_)
      if (guest->waits(Gfn{p})) want(*guest, Gfn{p}, now);  // to be told ABSENT again
  }
}

}  // namespace snowfabric
