// SPDX-License-Identifier: BSD-3-Clause
// What clones get that they did not ask for: lists, the working set, completion.
#include <algorithm>

#include "memtap-dpdk/host.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kInFlight = 512;   // of the request table; the rest is for faults
constexpr std::size_t kListStep = 4096;  // pages of a list looked at in one turn
constexpr std::size_t kLoadStep = 256;   // pages given to guests in one turn
constexpr Nanos kRestPause = std::chrono::seconds{2};  // after a lead has moved

}  // namespace

/// @return false: there is no room
bool Host::fetch(Gfn page, Nanos now) noexcept {
  if (engine_.in_flight(page) || !needs(page)) return true;
  if (engine_.nb_in_flight() >= kInFlight) return false;
  if (!engine_.want(page, wire::Priority::kPrefetch, now)) return false;
  stats_.prefetch_wanted.add(1);
  return true;
}

/// The leads first, then the rest of the working set, then the list.
void Host::fetch_some(Nanos now) noexcept {
  if (!fetch_leads(now) || (guests_.empty() && (kept_ == nullptr || now < rest_at_))) return;
  std::size_t left = kListStep;
  for (; left > 0 && rest_.place < working_set_.nb_pages(); --left, working_set_.advance(rest_))
    if (now < rest_at_ || !fetch(working_set_.page(rest_), now)) return;
  for (; left > 0 && !list_.empty(); --left) {
    PageRange& range = list_.back();
    if (!fetch(range.first, now)) return;
    ++range.first.value;
    if (--range.nb_pages == 0) list_.pop_back();
  }
}

/// @return false: there is no room for more
bool Host::fetch_leads(Nanos now) noexcept {
  for (Load& load : loads_)
    for (; load.fetched.place < load.until; working_set_.advance(load.fetched))
      if (!is_marker(load, load.fetched) && !fetch(working_set_.page(load.fetched), now))
        return false;
  return true;
}

void Host::prefetch(std::span<const PageRange> list) {
  const auto ranges = inside(list);
  list_.insert(list_.begin(), ranges.rbegin(), ranges.rend());  // the first is the last
}

/// To guests that did not ask: all of them together get no more in one turn.
void Host::give_some(Nanos now) noexcept {
  const auto nb_loads =
      std::ranges::count_if(loads_, [](const Load& load) { return load.given.place < load.until; });
  const std::size_t nb_guests = completions_.size() + static_cast<std::size_t>(nb_loads);
  if (nb_guests == 0) return;
  const std::size_t most = std::max<std::size_t>(1, kLoadStep / nb_guests);
  for (Load& load : loads_) load_some(load, most);
  std::erase_if(completions_, [&](Completion& c) { return complete_some(c, most, now); });
}

// --- working set -----------------------------------------------------------------------------

void Host::load(std::span<const PageRange> working_set, Nanos rest_at) {
  for (const PageRange& range : inside(working_set)) record(range);
  working_set_ = WorkingSet{recorded_};  // each page once
  rest_at_ = rest_at;
}

/// The guest has touched this place, and is given all before it too: others touch in other orders.
void Host::lead(Load& load, std::uint64_t place) noexcept {
  load.until = std::max(load.until, std::min(place + WorkingSet::kLead, working_set_.nb_pages()));
}

/// @return whether the page is of the working set
bool Host::follow(const GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  const auto place = guest.is_loader() ? std::nullopt : working_set_.find(page);
  if (!place) return false;
  Load& load = *std::ranges::find(loads_, &guest, &Load::guest);
  const std::uint64_t until = load.until;
  lead(load, *place);
  if (load.until != until) rest_at_ = std::max(rest_at_, now + kRestPause);
  return true;
}

bool Host::is_marker(const Load& load, const WorkingSet::Cursor& at) const noexcept {
  return load.until < working_set_.nb_pages() && WorkingSet::is_marker(at);
}

/// What is not known yet goes to every guest when it comes.
void Host::load_some(Load& load, std::size_t most) noexcept {
  for (; most > 0 && load.given.place < load.until; --most, working_set_.advance(load.given)) {
    const Gfn page = working_set_.page(load.given);
    if (kept_ == nullptr || is_marker(load, load.given) || !kept_->knows(page) ||
        !load.guest->presence().absent(page))
      continue;
    const Install verdict = kept_->give(page, *load.guest);
    if (verdict == Install::kAgain || verdict == Install::kNoMemory) return;
    if (verdict != Install::kDone) {  // the guest is dead, or will be
      load.until = 0;
      return;
    }
    stats_.loaded_pages.add(1);
  }
}

/// What a guest could not take when it came is offered to it once more, as far as its lead goes.
void Host::load_again(const GuestAdapter& guest) noexcept {
  for (Load& load : loads_)
    if (load.guest == &guest) load.given = {};
}

bool Host::quiet() const noexcept {
  const auto is_given = [](const Load& load) { return load.given.place >= load.until; };
  const auto is_done = [](const Deferred& deferred) { return deferred.pages.empty(); };
  return completions_.empty() && list_.empty() && waits_.empty() && gathered_.empty() &&
         std::ranges::all_of(loads_, is_given) && std::ranges::all_of(deferred_, is_done);
}

// --- completion ------------------------------------------------------------------------------

void Host::complete(GuestAdapter& guest) {
  if (!completing(guest)) completions_.push_back({.guest = &guest});
}

bool Host::completing(const GuestAdapter& guest) const noexcept {
  return std::ranges::any_of(completions_,
                             [&guest](const Completion& c) { return c.guest == &guest; });
}

/// Installs that are put off, and pages that are lost, are found absent in the next round.
/// @param most  pages that it lacks to be looked after
/// @return whether the guest has all
bool Host::complete_some(Completion& completion, std::size_t most, Nanos now) noexcept {
  for (std::size_t i = 0; i < kListStep && most > 0; ++i) {
    if (completion.next.value == engine_.nb_pages()) {
      if (!completion.lacks) return true;
      completion.next = {};
      completion.lacks = false;
      return false;
    }
    if (completion.guest->presence().absent(completion.next)) {
      completion.lacks = true;
      --most;
      if (!complete_page(*completion.guest, completion.next, now)) return false;
    }
    ++completion.next.value;
  }
  return false;
}

/// @return false: it is to be tried again, later
bool Host::complete_page(GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  if (kept_ != nullptr && kept_->knows(page)) return kept_->give(page, guest) == Install::kDone;
  return fetch(page, now);
}

}  // namespace snowfabric
