// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/xen_guest.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <string>
#include <utility>

#include "descriptor/xen_state.hpp"
#include "xen-glue/libxen_calls.hpp"

namespace snowfabric {
namespace {

constexpr std::array<std::byte, kPageSize> kZeros{};
/// Claimed pages behind a faulting one that get their zeros with it: whoever fills memory asks for
/// them next, and a fault costs more than they do.
constexpr std::uint64_t kZerosAhead = 15;

Result<std::optional<xen::GuestBitmap>> map_bitmap(const xen::Domain& domain,
                                                   const std::optional<PageRange>& where,
                                                   std::uint64_t nb_pages, bool recover) {
  if (!where) return std::nullopt;
  auto bitmap = recover ? xen::GuestBitmap::take_over(domain, *where, nb_pages)
                        : xen::GuestBitmap::reset(domain, *where, nb_pages);
  if (!bitmap) return std::unexpected(bitmap.error());
  return std::optional{std::move(*bitmap)};
}

}  // namespace

Result<XenSeed> XenSeed::from(const Descriptor& descriptor) {
  auto state = xen::state_of(descriptor);
  if (!state) return std::unexpected(state.error());
  auto calls = xen::open_libxen();
  if (!calls) return std::unexpected(calls.error());
  return XenSeed{std::move(*calls), {std::move(state->eager), state->bitmap}};
}

XenGuest::XenGuest(std::uint32_t id, Peer peer, PresenceFile presence,
                   std::unique_ptr<xen::DomainPager> pager, std::optional<xen::GuestBitmap> bitmap,
                   std::span<const Gfn> eager)
    : ProcessGuest{id, std::move(peer), std::move(presence)},
      pager_{std::move(pager)},
      bitmap_{std::move(bitmap)},
      eager_(eager.begin(), eager.end()) {
  const std::size_t nb_waited_for = xen::kRingSlots + kMaxAskedPages + eager_.size();
  starved_.reserve(nb_waited_for);
  failed_.reserve(nb_waited_for);
  if (bitmap_) presence_ = bitmap_->presence();
  // What an earlier memtap has put is there already.
  nb_eager_in_ = static_cast<std::size_t>(
      std::ranges::count_if(eager_, [this](Gfn page) { return !presence_.absent(page); }));
}

/// What the guest has claimed needs nobody: with its zeros it has all its memory, and runs on.
XenGuest::~XenGuest() {
  if (gone() || !bitmap_ || nb_missing() > 0) return;
  for (std::uint64_t i = 0; i < presence_.nb_pages(); ++i)
    if (presence_.state(Gfn{i}) == PageState::kClaimedByGuest && !give_zeros(Gfn{i})) return;
}

Result<std::unique_ptr<XenGuest>> XenGuest::adopt(std::uint32_t id, XenAttachment attachment,
                                                  PresenceFile presence, xen::XenCalls& calls,
                                                  const XenPages& pages) {
  const xen::Domain domain{calls, attachment.domain};
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  if (!info->paused && !attachment.recover)
    return snowfabric::fail(EBUSY,
                            to_string(domain.id()) + " runs, and a new clone has to be paused");
  if (!info->paused)
    if (const auto ok = domain.pause(); !ok) return std::unexpected(ok.error());
  // If that fails it stays paused: without any paging it would not survive its first touch. If
  // what follows fails the ring stays, and only `recover` can take it.
  auto pager =
      attachment.recover ? xen::DomainPager::take_over(domain) : xen::DomainPager::enable(domain);
  if (!pager) return std::unexpected(pager.error());
  auto bitmap = map_bitmap(domain, pages.bitmap, presence.view().nb_pages(), attachment.recover);
  if (!bitmap) return std::unexpected(bitmap.error());
  std::unique_ptr<XenGuest> guest{new XenGuest{id, std::move(attachment.peer), std::move(presence),
                                               std::move(*pager), std::move(*bitmap), pages.eager}};
  guest->left_asked_ = std::move(attachment.asked);
  std::ranges::sort(guest->left_asked_);
  if (guest->nb_eager_in_ == guest->eager_.size() && guest->start() != Install::kDone)
    return snowfabric::fail(EIO, std::string{guest->trouble()});
  return guest;
}

// --- from the guest ---------------------------------------------------------------------------

std::size_t XenGuest::poll_faults(std::span<Gfn> out) noexcept {
  if (gone()) return 0;
  std::size_t nb_faults = 0;
  for (; nb_faults < out.size() && nb_eager_reported_ < eager_.size(); ++nb_eager_reported_)
    if (presence_.absent(eager_[nb_eager_reported_])) out[nb_faults++] = eager_[nb_eager_reported_];
  nb_faults += report_left(out.subspan(nb_faults));
  nb_faults += report_failed(out.subspan(nb_faults));
  retry_starved();
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

/// Whoever touches a page that a memtap was asked for which died asks nobody: its fault is made
/// here. @return how many
std::size_t XenGuest::report_left(std::span<Gfn> out) noexcept {
  std::size_t nb_faults = 0;
  for (; nb_faults < out.size() && nb_left_reported_ < left_asked_.size(); ++nb_left_reported_) {
    const Gfn page = left_asked_[nb_left_reported_];
    if (page.value >= presence_.nb_pages()) continue;
    if (presence_.state(page) == PageState::kPresent) continue;
    if (presence_.state(page) == PageState::kClaimedByGuest)
      answer_with_zeros(page);
    else
      out[nb_faults++] = page;
  }
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
    case PageState::kPresent: answer_present(page); return false;
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
  if (std::ranges::binary_search(left_asked_, page))
    return presence_.state(page) != PageState::kPresent;
  return is_eager(page) && presence_.absent(page);
}

/// Once it runs, no page is.
bool XenGuest::is_eager(Gfn page) const noexcept {
  return !started_ && std::ranges::binary_search(eager_, page);
}

// --- into the guest ---------------------------------------------------------------------------

Install XenGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  return fill({first, static_cast<std::uint32_t>(pages.size() / kPageSize)}, pages.data());
}

Install XenGuest::install_zeros(PageRange pages) noexcept { return fill(pages, nullptr); }

/// @param bytes  of the pages, or nullptr for zeros
Install XenGuest::fill(PageRange pages, const std::byte* bytes) noexcept {
  if (gone()) return Install::kGone;
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
  if (verdict == Install::kDone && !started_ && nb_eager_in_ == eager_.size()) verdict = start();
  return verdict;
}

/// One page, claimed.
Install XenGuest::put(Gfn page, const std::byte* bytes) noexcept {
  const int errnum = pager_->load(page, bytes == nullptr ? kZeros.data() : bytes);
  // ENOENT: it is there, put by the guest itself since its eviction. Xen does not overwrite it.
  if (errnum != 0 && errnum != ENOENT) return give_up(errnum, page);
  presence_.mark_present(page);
  if (errnum == ENOENT)
    counters_.eexist.add(1);
  else
    (bytes == nullptr ? counters_.zero_pages : counters_.installed_pages).add(1);
  counters_.install_calls.add(1);
  pager_->answer(page);
  if (is_eager(page)) ++nb_eager_in_;
  return Install::kDone;
}

Install XenGuest::give_up(int errnum, Gfn page) noexcept {
  presence_.unclaim(page);
  switch (errnum) {
    case ENOMEM: counters_.no_memory.add(1); return Install::kNoMemory;
    case ESRCH: mark_gone(); return Install::kGone;
    default: set_trouble("Xen refused to load a page"); return Install::kFailed;
  }
}

/// Of a page that the guest has claimed, or given back: nothing is fetched for it.
void XenGuest::answer_with_zeros(Gfn page) noexcept {
  if (!give_zeros(page)) return starve(page);
  counters_.faults_zeroed.add(1);
  pager_->answer(page);
  const std::uint64_t end = std::min(page.value + 1 + kZerosAhead, presence_.nb_pages());
  for (std::uint64_t next = page.value + 1; next < end; ++next)
    if (presence_.state(Gfn{next}) != PageState::kClaimedByGuest || !give_zeros(Gfn{next})) break;
}

/// @return 0; ENOENT: the page is there; ENOMEM: later; or a trouble
int XenGuest::load_zeros(Gfn page) noexcept {
  const int errnum = pager_->load(page, kZeros.data());
  if (errnum == ESRCH) mark_gone();
  if (errnum != 0 && errnum != ENOENT && errnum != ENOMEM && !gone())
    set_trouble("Xen refused to load a page");
  return errnum;
}

/// @pre the page is the guest's
/// @return whether it has zeros now
bool XenGuest::give_zeros(Gfn page) noexcept {
  const int errnum = load_zeros(page);
  if (errnum == 0) counters_.claimed_zero_pages.add(1);
  const bool done = errnum == 0 || errnum == ENOENT;
  if (done) presence_.fill(page);
  return done;
}

/// It came between fault and answer. Should the guest have set the bits itself, it gets zeros: else
/// it would fault again and again.
void XenGuest::answer_present(Gfn page) noexcept {
  const int errnum = load_zeros(page);
  if (errnum != 0 && errnum != ENOENT) return starve(page);
  (errnum == ENOENT ? counters_.faults_raced : counters_.faults_zeroed).add(1);
  pager_->answer(page);
}

/// Its zeros could not be loaded. After an answer nobody would ask for it again.
void XenGuest::starve(Gfn page) noexcept {
  if (std::ranges::find(starved_, page) == starved_.end()) starved_.push_back(page);
}

void XenGuest::retry_starved() noexcept {
  constexpr auto kPause = std::chrono::milliseconds{5};
  if (starved_.empty() || Clock::now() < next_retry_) return;
  next_retry_ = Clock::now() + kPause;
  for (std::size_t nb_left = starved_.size(); nb_left > 0; --nb_left) {
    const Gfn page = starved_.front();
    starved_.erase(starved_.begin());
    answer_settled(page);
  }
}

/// A page that is not ours to install: the guest claimed it after a vCPU had faulted on it, or it
/// is there, or the guest says so.
void XenGuest::skip(Gfn page) noexcept {
  counters_.skipped_pages.add(1);
  answer_settled(page);
}

/// Who waits for a page that is not ours to install, if anybody does.
void XenGuest::answer_settled(Gfn page) noexcept {
  if (!waits(page)) return;
  if (presence_.state(page) == PageState::kClaimedByGuest)
    answer_with_zeros(page);
  else
    answer_present(page);
}

Install XenGuest::start() noexcept {
  const xen::Domain& domain = pager_->domain();
  const int errnum = domain.calls().unpause(domain.id());
  if (errnum == ESRCH) {
    mark_gone();
    return Install::kGone;
  }
  if (errnum != 0 && errnum != EINVAL) {  // that: somebody else has let it run
    set_trouble("Xen refused to let the clone run");
    return Install::kFailed;
  }
  started_ = true;
  return Install::kDone;
}

// --- when all else failed ---------------------------------------------------------------------

FailMeans XenGuest::fail(Gfn page) noexcept {
  if (gone()) return FailMeans::kGone;
  if (!presence_.absent(page)) {
    skip(page);
    pager_->notify();
    return FailMeans::kNotNeeded;
  }
  if (std::ranges::find(failed_, page) == failed_.end()) failed_.push_back(page);
  const xen::Domain& domain = pager_->domain();
  xen::DomainInfo info;
  int errnum = domain.calls().info(domain.id(), info);
  if (errnum == 0 && !info.paused) {  // pauses are counted: one is enough, and undone by one
    errnum = domain.calls().pause(domain.id());
    if (errnum == 0) counters_.pauses.add(1);
  }
  if (errnum == ESRCH) mark_gone();
  if (errnum != 0) return gone() ? FailMeans::kGone : FailMeans::kRefused;
  return FailMeans::kPaused;
}

/// Who waits for these has no answer: it would not ask again. Once somebody lets the domain run
/// they are faults anew. @return how many
std::size_t XenGuest::report_failed(std::span<Gfn> out) noexcept {
  constexpr auto kLookEvery = std::chrono::milliseconds{100};
  if (failed_.empty() || Clock::now() < next_look_) return 0;
  next_look_ = Clock::now() + kLookEvery;
  xen::DomainInfo info;
  const xen::Domain& domain = pager_->domain();
  if (domain.calls().info(domain.id(), info) != 0 || info.paused) return 0;
  std::size_t nb_faults = 0;
  while (nb_faults < out.size() && !failed_.empty()) {
    const Gfn page = failed_.front();
    failed_.erase(failed_.begin());
    if (presence_.absent(page))
      out[nb_faults++] = page;
    else
      answer_settled(page);
  }
  return nb_faults;
}

bool XenGuest::kill() noexcept {
  const xen::Domain& domain = pager_->domain();
  const int errnum = domain.calls().destroy(domain.id());
  if (errnum == 0) counters_.kills.add(1);
  if (errnum == 0 || errnum == ESRCH) mark_gone();
  return errnum == 0;
}

}  // namespace snowfabric
