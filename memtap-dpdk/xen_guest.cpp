// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/xen_guest.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace snowfabric {
namespace {

alignas(kPageSize) constexpr std::array<std::byte, kPageSize> kZeros{};

}  // namespace

XenGuest::XenGuest(std::unique_ptr<xen::DomainPager> pager, PresenceFile file, XenSeed seed,
                   std::vector<Gfn> kept)
    : pager_{std::move(pager)},
      file_{std::move(file)},
      presence_{file_.view()},
      seed_{std::move(seed)},
      kept_{std::move(kept)} {
  // What Xen refused to evict is written through a mapping, which a guest that runs must not see.
  seed_.eager.insert(seed_.eager.end(), kept_.begin(), kept_.end());
  std::ranges::sort(seed_.eager);
  const auto repeated = std::ranges::unique(seed_.eager);
  seed_.eager.erase(repeated.begin(), repeated.end());
  const Gfn end{presence_.nb_pages()};
  seed_.eager.erase(std::ranges::lower_bound(seed_.eager, end), seed_.eager.end());
}

Result<std::unique_ptr<XenGuest>> XenGuest::adopt(xen::Domain domain, PresenceFile presence,
                                                  XenSeed seed) {
  if (const auto ok = domain.set_tsc(seed.tsc); !ok) return std::unexpected(ok.error());
  auto pager = xen::DomainPager::enable(domain);
  if (!pager) return std::unexpected(pager.error());
  std::vector<Gfn> kept;
  const PageRange all{Gfn{0}, static_cast<std::uint32_t>(presence.view().nb_pages())};
  if (const auto ok = (*pager)->evict(all, kept); !ok) return std::unexpected(ok.error());
  std::unique_ptr<XenGuest> guest{
      new XenGuest{std::move(*pager), std::move(presence), std::move(seed), std::move(kept)}};
  if (guest->seed_.eager.empty() && guest->start() != Install::kDone)
    return std::unexpected(Error{EIO, std::string{guest->trouble()}});
  return guest;
}

// --- from the guest ---------------------------------------------------------------------------

std::size_t XenGuest::poll_faults(std::span<Gfn> out) noexcept {
  if (gone_) return 0;
  std::size_t nb_faults = 0;
  for (; nb_faults < out.size() && nb_eager_reported_ < seed_.eager.size(); ++nb_eager_reported_)
    if (presence_.absent(seed_.eager[nb_eager_reported_]))
      out[nb_faults++] = seed_.eager[nb_eager_reported_];
  pager_->acknowledge();
  for (xen::DomainPager::Fault fault; nb_faults < out.size();) {
    const auto taken = pager_->take(fault);
    if (taken == xen::PagingRing::Take::kBroken) set_trouble("the paging ring is corrupt");
    if (taken != xen::PagingRing::Take::kRequest) break;
    if (on_fault(fault)) out[nb_faults++] = fault.request.page;
  }
  pager_->notify();
  return nb_faults;
}

/// @return whether the page is to be fetched
bool XenGuest::on_fault(const xen::DomainPager::Fault& fault) noexcept {
  const Gfn page = fault.request.page;
  if (page.value >= presence_.nb_pages()) {
    counters_.faults_outside.add(1);
    set_trouble("a fault on a page that was not evicted here");
    return false;
  }
  if (fault.request.dropped()) {
    presence_.discard(page);
    counters_.removed_pages.add(1);
    pager_->answer(page);
    return false;
  }
  switch (presence_.state(page)) {
    case PageState::kPresent:
      counters_.faults_raced.add(1);
      pager_->answer(page);
      return false;
    case PageState::kClaimedByGuest: answer_with_zeros(page); return false;
    default: break;
  }
  if (fault.repeated) {
    counters_.faults_repeated.add(1);
    return false;
  }
  counters_.faults.add(1);
  return true;
}

bool XenGuest::waits(Gfn page) const noexcept {
  if (pager_->waits(page)) return true;
  return !started_ && presence_.absent(page) && std::ranges::binary_search(seed_.eager, page);
}

void XenGuest::check_alive() noexcept {
  xen::DomainInfo info;
  const xen::Domain& domain = pager_->domain();
  if (domain.calls().info(domain.id(), info) == ESRCH || info.dying) gone_ = true;
}

// --- into the guest ---------------------------------------------------------------------------

Install XenGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  return fill({first, static_cast<std::uint32_t>(pages.size() / kPageSize)}, pages.data());
}

Install XenGuest::install_zeros(PageRange pages) noexcept { return fill(pages, nullptr); }

/// @param bytes  of the pages, or nullptr for zeros
Install XenGuest::fill(PageRange pages, const std::byte* bytes) noexcept {
  if (gone_) return Install::kGone;
  const std::uint64_t begin = pages.first.value;
  const std::uint64_t end = std::min<std::uint64_t>(begin + pages.nb_pages, presence_.nb_pages());
  Install verdict = Install::kDone;
  for (std::uint64_t at = begin; at < end && verdict == Install::kDone; ++at) {
    if (!presence_.claim(Gfn{at}, PageState::kClaimedByMemtap))
      skip(Gfn{at});
    else
      verdict = put(Gfn{at}, bytes == nullptr ? nullptr : bytes + (at - begin) * kPageSize);
  }
  pager_->notify();
  if (verdict == Install::kDone && !started_ && nb_eager_in_ == seed_.eager.size())
    verdict = start();
  return verdict;
}

/// One page, claimed.
Install XenGuest::put(Gfn page, const std::byte* bytes) noexcept {
  const int errnum = write(page, bytes == nullptr ? kZeros.data() : bytes);
  // ENOENT: it is there, put by the guest itself since its eviction. Xen does not overwrite it.
  if (errnum != 0 && errnum != ENOENT) return give_up(errnum, page);
  presence_.mark_present(page);
  if (errnum == ENOENT)
    counters_.eexist.add(1);
  else
    (bytes == nullptr ? counters_.zero_pages : counters_.installed_pages).add(1);
  counters_.install_calls.add(1);
  pager_->answer(page);
  if (!started_ && std::ranges::binary_search(seed_.eager, page)) ++nb_eager_in_;
  return Install::kDone;
}

/// @return 0 or errno
int XenGuest::write(Gfn page, const std::byte* bytes) noexcept {
  if (std::ranges::binary_search(kept_, page)) {
    const auto mapped = pager_->domain().map_page(page, xen::Access::kReadWrite);
    if (!mapped) return mapped.error().errnum;
    std::memcpy(mapped->page(0).data(), bytes, kPageSize);
    return 0;
  }
  alignas(kPageSize) std::array<std::byte, kPageSize> aligned;
  if (reinterpret_cast<std::uintptr_t>(bytes) % kPageSize != 0) {
    std::memcpy(aligned.data(), bytes, kPageSize);
    bytes = aligned.data();
  }
  return pager_->load(page, bytes);
}

Install XenGuest::give_up(int errnum, Gfn page) noexcept {
  presence_.unclaim(page);
  switch (errnum) {
    case ENOMEM: counters_.no_memory.add(1); return Install::kNoMemory;
    case ESRCH: gone_ = true; return Install::kGone;
    default: set_trouble("Xen refused to load a page"); return Install::kFailed;
  }
}

/// Of a page that the guest has claimed, or given back: nothing is fetched for it.
void XenGuest::answer_with_zeros(Gfn page) noexcept {
  const int errnum = pager_->load(page, kZeros.data());
  if (errnum == ESRCH) gone_ = true;
  if (errnum == 0) counters_.faults_zeroed.add(1);
  // With ENOMEM the vCPU faults again, and that is the retry.
  pager_->answer(page);
}

/// A page that is not ours to install. One that the guest claimed after a vCPU had faulted on it
/// reads as zeros.
void XenGuest::skip(Gfn page) noexcept {
  counters_.skipped_pages.add(1);
  if (!pager_->waits(page)) return;
  if (presence_.state(page) == PageState::kClaimedByGuest)
    answer_with_zeros(page);
  else
    pager_->answer(page);
}

/// Restoring the state reads no guest memory, so it works with nearly all of it evicted.
Install XenGuest::start() noexcept {
  const xen::Domain& domain = pager_->domain();
  int errnum = domain.calls().set_context(domain.id(), seed_.context);
  if (errnum == 0) errnum = domain.calls().unpause(domain.id());
  if (errnum == ESRCH) {
    gone_ = true;
    return Install::kGone;
  }
  if (errnum != 0) {
    set_trouble("Xen refused the parent's state, or to let the clone run");
    return Install::kFailed;
  }
  started_ = true;
  return Install::kDone;
}

// --- when all else failed ---------------------------------------------------------------------

FailMeans XenGuest::fail(Gfn page) noexcept {
  if (gone_) return FailMeans::kGone;
  if (!presence_.absent(page)) {
    skip(page);
    pager_->notify();
    return FailMeans::kNotNeeded;
  }
  const xen::Domain& domain = pager_->domain();
  xen::DomainInfo info;
  int errnum = domain.calls().info(domain.id(), info);
  if (errnum == 0 && !info.paused) {  // pauses are counted: one is enough, and undone by one
    errnum = domain.calls().pause(domain.id());
    if (errnum == 0) counters_.pauses.add(1);
  }
  if (errnum == ESRCH) gone_ = true;
  if (errnum != 0) return gone_ ? FailMeans::kGone : FailMeans::kRefused;
  pager_->answer(page);
  pager_->notify();
  return FailMeans::kPaused;
}

bool XenGuest::kill() noexcept {
  const xen::Domain& domain = pager_->domain();
  const int errnum = domain.calls().destroy(domain.id());
  if (errnum == 0) counters_.kills.add(1);
  if (errnum == 0 || errnum == ESRCH) gone_ = true;
  return errnum == 0;
}

void XenGuest::set_trouble(std::string_view why) noexcept {
  counters_.unsupported_events.add(1);
  if (trouble_.empty()) trouble_ = why;
}

}  // namespace snowfabric
