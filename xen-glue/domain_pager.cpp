// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/domain_pager.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include <fmt/format.h>

namespace snowfabric::xen {
namespace {

Result<Gfn> ring_page_of(const Domain& domain) {
  Gfn page;
  const int errnum = domain.calls().paging_ring_page(domain.id(), page);
  if (const auto ok = domain.checked(errnum, "look up the paging ring"); !ok)
    return std::unexpected(ok.error());
  return page;
}

/// A vCPU that waited for room in the ring looks there once more when it runs, and so must have run
/// before the ring goes: Xen frees that under it. Source: vm_event_disable() of
/// xen/common/vm_event.c, which asks only who waits, and wake_up_nr() of wait.c, for which who is
/// to run no longer does.
constexpr std::chrono::milliseconds kRest{20};
constexpr unsigned kMostRests = 500, kMostRestsAtEnd = 50;

}  // namespace

DomainPager::DomainPager(Domain domain, ForeignPages ring_page)
    : domain_{domain}, ring_page_{std::move(ring_page)}, ring_{ring_page_.page(0)} {
  waiting_.reserve(kRingSlots);
}

/// Whoever paged the domain before has taken it away.
Result<ForeignPages> DomainPager::map_ring_page(const Domain& domain) {
  const auto page = ring_page_of(domain);
  if (!page) return std::unexpected(page.error());
  if (auto mapped = domain.map_page(*page, Access::kReadWrite)) return mapped;
  if (const auto ok = domain.populate({&*page, 1}); !ok) return std::unexpected(ok.error());
  return domain.map_page(*page, Access::kReadWrite);
}

Result<std::unique_ptr<DomainPager>> DomainPager::enable(Domain domain) {
  return make(domain, RingFate::kIsTakenAway);
}

Result<std::unique_ptr<DomainPager>> DomainPager::make(Domain domain, RingFate fate) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  if (!info->paused)
    return fail(EINVAL, fmt::format("paging of {}: it is not paused", to_string(domain.id())));
  auto mapped = map_ring_page(domain);
  if (!mapped) return std::unexpected(mapped.error());
  std::unique_ptr<DomainPager> pager{new DomainPager{domain, std::move(*mapped)}};
  pager->takes_ring_along_ = fate == RingFate::kStays;
  if (const auto ok = pager->start(); !ok) return std::unexpected(ok.error());
  if (fate == RingFate::kStays) return pager;
  // From here on the guest cannot write to the ring.
  const auto page = ring_page_of(domain);
  if (!page) return std::unexpected(page.error());
  const int errnum = domain.calls().depopulate(domain.id(), *page);
  if (const auto ok = domain.checked(errnum, "take away the paging ring", *page); !ok)
    return std::unexpected(ok.error());
  return pager;
}

Result<void> DomainPager::start() {
  XenCalls& calls = domain_.calls();
  std::uint32_t port = 0;
  if (const auto ok =
          domain_.checked(calls.paging_enable(domain_.id(), port), "enable memory paging");
      !ok)
    return ok;
  enabled_ = true;
  return domain_.checked(calls.bind(domain_.id(), port, port_), "bind the paging event channel");
}

Result<bool> DomainPager::drain(const Domain& domain, std::span<const RingPage> rings,
                                std::vector<Gfn>& asked) {
  bool was_full = false;
  for (const RingPage ring : rings) was_full |= PagingRing::drain(ring, asked) == kRingSlots;
  const int errnum = domain.calls().paging_resume(domain.id());
  if (const auto ok = domain.checked(errnum, "empty the paging ring"); !ok)
    return std::unexpected(ok.error());
  return was_full;
}

Result<bool> DomainPager::pause_drained(const Domain& domain, std::span<const RingPage> rings,
                                        std::vector<Gfn>& asked) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  bool paused = info->paused;
  auto was_full = let_all_ask(domain, rings, asked, paused);
  if (info->paused && !paused) domain.calls().pause(domain.id());  // it failed while that ran
  return was_full;
}

/// @param paused  what the domain is; at the end, if all goes well, it is
Result<bool> DomainPager::let_all_ask(const Domain& domain, std::span<const RingPage> rings,
                                      std::vector<Gfn>& asked, bool& paused) {
  constexpr unsigned kNbLooks = 6;  // in a row, with room in the ring
  const auto pause = [&](bool on) {
    auto ok = paused == on ? Result<void>{} : on ? domain.pause() : domain.unpause();
    if (ok) paused = on;
    return ok;
  };
  bool was_full = false;
  unsigned nb_good = 0;
  for (unsigned nb_rests = 0; nb_rests < kMostRests; ++nb_rests) {
    const bool is_last = nb_good == kNbLooks;
    if (is_last)
      if (const auto ok = pause(true); !ok) return std::unexpected(ok.error());
    const auto full = drain(domain, rings, asked);
    const bool has_ring = full || full.error().errnum != ENODEV;
    if (!has_ring)  // without one it must not run
      if (const auto ok = pause(true); !ok) return std::unexpected(ok.error());
    if (!has_ring || (is_last && full && !*full)) return was_full;
    if (!full) return full;
    was_full |= *full;
    nb_good = *full ? 0 : nb_good + 1;
    if (nb_good == kNbLooks) continue;  // and one more while it stands
    if (const auto ok = pause(false); !ok) return std::unexpected(ok.error());
    std::this_thread::sleep_for(kRest);
  }
  return fail(ETIMEDOUT,
              "a pause of " + to_string(domain.id()) + ", which asks for more and more pages,");
}

Result<std::unique_ptr<DomainPager>> DomainPager::take_over(Domain domain) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  const int errnum = domain.calls().paging_disable(domain.id());  // good if there is none
  const char* const what = errnum == EBUSY
                               ? "end the paging, whose ring was full when its pager died,"
                               : "end the paging";
  if (const auto ok = domain.checked(errnum, what); !ok) return std::unexpected(ok.error());
  if (const auto ok = release_vcpus(domain, info->nb_vcpus); !ok)
    return std::unexpected(ok.error());
  return enable(domain);
}

/// A vCPU may wait for more answers than one: Xen touches pages for it while it stops it, to note
/// in the guest's memory since when it stands, and stops it once more for each that is missing. A
/// ring's slots bound them, so each vCPU gets a ring of answers: see PagingRing::release().
Result<void> DomainPager::release_vcpus(Domain domain, std::uint32_t nb_vcpus) {
  for (std::uint32_t vcpu = 0; vcpu < nb_vcpus; ++vcpu) {
    const auto pager = make(domain, RingFate::kStays);  // for the last of them
    if (!pager) return std::unexpected(pager.error());
    for (std::size_t i = 0; i < kRingSlots; ++i) (*pager)->ring_.release(vcpu);
    (*pager)->notify();
  }
  return {};
}

DomainPager::~DomainPager() {
  if (!enabled_) return;
  XenCalls& calls = domain_.calls();
  // Nobody may touch a page between the last answer and the end of the ring. A domain that is gone
  // needs none of it, and of one that cannot be looked at the ring has to stay.
  DomainInfo info;
  if (calls.info(domain_.id(), info) != 0) return;
  const bool ran = !info.paused;
  if (ran && calls.pause(domain_.id()) != 0) return;
  if (ran && calls.info(domain_.id(), info) != 0) {
    calls.unpause(domain_.id());
    return;
  }
  // Without a ring it would crash as soon as somebody lets it run. To empty the ring it would have
  // to run, and ask for more: what it has asked for it never asks for again, so whoever takes over
  // has to hear of all that.
  if (info.nb_paged_pages > 0 && !takes_ring_along_) return;
  answer_all();
  for (unsigned i = 0; was_full_ && i < kMostRestsAtEnd; ++i) {
    was_full_ = false;
    calls.unpause(domain_.id());
    std::this_thread::sleep_for(kRest);
    calls.pause(domain_.id());
    answer_all();
  }
  if (!was_full_) calls.paging_disable(domain_.id());
  if (ran) calls.unpause(domain_.id());
}

void DomainPager::answer_all() noexcept {
  if (port_ == nullptr) return;
  for (Fault fault; take(fault) == PagingRing::Take::kRequest;) {
  }
  for (const PagingRequest& request : waiting_) ring_.answer(request, false);
  waiting_.clear();
  notify();
}

Result<void> DomainPager::evict(PageRange pages, std::vector<Gfn>& kept) {
  takes_ring_along_ = true;
  const std::vector<Gfn> all = list_of(pages);
  std::vector<int> errors(all.size());
  domain_.calls().paging_evict(domain_.id(), all, errors);
  return sort_out("evict a page", all, errors, kept);
}

Result<void> DomainPager::nominate(std::span<const Gfn> pages, std::vector<Gfn>& refused) {
  std::vector<int> errors(pages.size());
  domain_.calls().paging_nominate(domain_.id(), pages, errors);
  return sort_out("nominate a page", pages, errors, refused);
}

/// @return the first error but EBUSY
Result<void> DomainPager::sort_out(const char* call, std::span<const Gfn> pages,
                                   std::span<const int> errors, std::vector<Gfn>& busy) const {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (errors[i] == EBUSY)
      busy.push_back(pages[i]);
    else if (const auto ok = domain_.checked(errors[i], call, pages[i]); !ok)
      return ok;
  }
  return {};
}

int DomainPager::set_free(std::span<const Gfn> pages) noexcept {
  std::array<int, kMostFreed> errors{};
  const std::span<int> used{errors.data(), pages.size()};
  domain_.calls().paging_free(domain_.id(), pages, used);
  int found = 0;
  for (const int errnum : used)
    if (errnum != 0 && errnum != EINVAL && (found == 0 || found == EAGAIN)) found = errnum;
  return found;
}

PagingRing::Take DomainPager::take(Fault& out) noexcept {
  const PagingRing::Take taken = ring_.take(out.request);
  if (taken != PagingRing::Take::kRequest) return taken;
  out.repeated = waits(out.request.page);
  waiting_.push_back(out.request);
  return taken;
}

bool DomainPager::waits(Gfn page) const noexcept {
  return std::ranges::find(waiting_, page, &PagingRequest::page) != waiting_.end();
}

std::size_t DomainPager::answer(Gfn page) noexcept {
  return std::erase_if(waiting_, [&](const PagingRequest& request) {
    if (request.page != page) return false;
    ring_.answer(request, true);
    return true;
  });
}

void DomainPager::notify() noexcept {
  if (!ring_.publish()) return;
  port_->notify();
  was_full_ |= ring_.was_full();
}

}  // namespace snowfabric::xen
