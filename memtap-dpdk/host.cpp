// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/host.hpp"

#include <algorithm>
#include <array>

namespace snowfabric {
namespace {

constexpr std::size_t kFaultBurst = 64;  // a guest and turn
constexpr std::size_t kMaxDeferred = 4096;
constexpr Nanos kRetryPause = std::chrono::milliseconds{5};  // after an install was put off
constexpr std::size_t kListInFlight = 512;  // a list leaves most of the request table to faults
constexpr std::size_t kListStep = 4096;     // pages of a list looked at in one turn

}  // namespace

Host::Host(ClientEngine& engine, HostStats& stats, std::uint32_t prefetch_pages,
           std::size_t buffer_pages)
    : engine_{engine}, stats_{stats}, prefetch_pages_{prefetch_pages}, gathered_{buffer_pages} {
  deferred_.reserve(2 * kMaxDeferred);  // faults, and installs put off
}

void Host::detach(const GuestAdapter& guest) noexcept {
  std::erase(guests_, &guest);
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
  while (!deferred_.empty() && now >= retry_at_) {
    const Gfn page = deferred_.back();  // unless it came meanwhile, or its guest is gone
    if (unsettled(page) && !engine_.want(page, wire::Priority::kDemand, now)) break;
    deferred_.pop_back();
  }
  if (!list_.empty() && !guests_.empty()) prefetch_from_list(now);
  unsigned nb_seen = 0;
  std::array<Gfn, kFaultBurst> faults;
  for (GuestAdapter* guest : guests_) {
    if (deferred_.size() + faults.size() > kMaxDeferred) break;  // the guest keeps the rest
    const std::size_t nb_faults = guest->poll_faults(faults);
    for (std::size_t i = 0; i < nb_faults; ++i) on_fault(*guest, faults[i], now);
    nb_seen += static_cast<unsigned>(nb_faults);
  }
  return nb_seen;
}

void Host::on_fault(GuestAdapter& guest, Gfn page, Nanos now) noexcept {
  if (gathered_.contains(page)) {
    stats_.fault_hits_buffer.add(1);
    flush(now);
    if (!guest.presence().absent(page)) return;
  }
  want(page, now);
  const std::uint64_t end = std::min(page.value + 1 + prefetch_pages_, engine_.nb_pages());
  for (Gfn next{page.value + 1}; next.value < end; ++next.value) {
    if (engine_.in_flight(next) || !needs(next)) continue;
    if (!engine_.want(next, wire::Priority::kPrefetch, now)) return;
    stats_.prefetch_wanted.add(1);
  }
}

void Host::prefetch(std::vector<PageRange> list) noexcept {
  list_ = std::move(list);
  for (PageRange& range : list_) range = inside(range);
  std::erase_if(list_, [](const PageRange& range) { return range.nb_pages == 0; });
  std::ranges::reverse(list_);
}

void Host::prefetch_from_list(Nanos now) noexcept {
  for (std::size_t i = 0; i < kListStep && !list_.empty(); ++i) {
    if (engine_.nb_in_flight() >= kListInFlight) return;
    PageRange& range = list_.back();
    const Gfn page = range.first;
    if (needs(page) && !engine_.in_flight(page) &&
        engine_.want(page, wire::Priority::kPrefetch, now))
      stats_.prefetch_wanted.add(1);
    ++range.first.value;
    if (--range.nb_pages == 0) list_.pop_back();
  }
}

void Host::want(Gfn page, Nanos now) noexcept {
  if (engine_.want(page, wire::Priority::kDemand, now)) return;
  stats_.wants_deferred.add(1);
  defer(page);
}

/// Room is never short: vCPUs wait for one page each, and poll_faults() leaves half of it.
void Host::defer(Gfn page) noexcept {
  if (deferred_.size() == deferred_.capacity() ||
      std::ranges::find(deferred_, page) != deferred_.end())
    return;
  deferred_.push_back(page);
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
  return engine_.demanded(page) || (lacking(page) && !gathered_.contains(page));
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
  constexpr std::uint32_t kOne = 1;  // asked for again, it brings back the whole run
  for (GuestAdapter* guest : guests_) settle(*guest, guest->install_zeros(range), range, kOne, now);
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
  for (GuestAdapter* guest : guests_)
    settle(*guest, guest->install(first, pages), range, range.nb_pages, now);
}

/// What somebody waits for and was put off is asked for again a little later: rarer than worth a
/// buffer of its own, and at once it would only find the guest or the host as they are. The rest
/// comes with its own fault.
/// @param most  pages to ask for
void Host::settle(GuestAdapter& guest, Install verdict, PageRange range, std::uint32_t most,
                  Nanos now) noexcept {
  if (verdict != Install::kAgain && verdict != Install::kNoMemory) return;
  const std::uint64_t end = range.first.value + range.nb_pages;
  for (std::uint64_t p = range.first.value; p < end && most > 0; ++p) {
    if (!guest.waits(Gfn{p})) continue;
    --most;
    stats_.refetched_pages.add(1);
    retry_at_ = now + kRetryPause;
    defer(Gfn{p});
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
  for (std::uint64_t p = range.first.value; p < range.first.value + range.nb_pages; ++p)
    if (!fail_page(Gfn{p})) want(Gfn{p}, now);  // to be told ABSENT again
}

}  // namespace snowfabric
