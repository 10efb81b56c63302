// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/uffd_guest.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include <sys/socket.h>
#include <sys/syscall.h>

#include "memtap-dpdk/uffd_ioctl.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kEventBurst = 32;
constexpr std::size_t kMaxForks = 16;

/// PageRange counts in 32 bits; an image may be larger.
constexpr std::uint64_t kMaxRun = std::uint64_t{1} << 20U;

PageRange range_of(std::uint64_t first, std::uint64_t nb_pages) noexcept {
  return {Gfn{first}, static_cast<std::uint32_t>(nb_pages)};
}

void discard_pages(Presence& presence, std::uint64_t begin, std::uint64_t end) noexcept {
  for (; begin < end; begin += std::min(kMaxRun, end - begin))
    presence.discard(range_of(begin, std::min(kMaxRun, end - begin)));
}

}  // namespace

UffdGuest::UffdGuest(std::uint32_t id, Attachment attachment, PresenceFile presence,
                     const KeptImage* kept)
    : ProcessGuest{id, std::move(attachment.peer), std::move(presence)},
      uffd_{std::move(attachment.uffd)},
      extra_{std::move(attachment.extra)},
      regions_{attachment.regions},
      kept_{kept != nullptr && attachment.mapped && attachment.mapped->inode == kept->inode()
                ? kept
                : nullptr},
      keeps_uffd_{attachment.mapped.has_value()} {
  forked_.reserve(kMaxForks);
  std::uint64_t mapped_to = 0;
  for (const Region& r : regions_.regions()) {
    discard_pages(presence_, mapped_to, r.offset / kPageSize);
    mapped_to = (r.offset + r.size) / kPageSize;
  }
  discard_pages(presence_, mapped_to, presence_.nb_pages());
  if (!keeps_uffd_) return;
  // Faults that a memtap before us took and did not answer come again.
  for (const Region& r : regions_.regions()) wake(r.base, r.size / kPageSize);
}

// --- from the guest ---------------------------------------------------------------------------

std::size_t UffdGuest::poll_faults(std::span<Gfn> out) noexcept {
  std::array<uffd_msg, kEventBurst> messages;
  const std::size_t wanted = std::min(out.size(), messages.size());
  const ssize_t n = uffd::read(uffd(), std::span{messages}.first(wanted));
  if (n <= 0) return 0;
  std::size_t nb_faults = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof(uffd_msg); ++i)
    if (on_event(messages[i], out[nb_faults])) ++nb_faults;
  return nb_faults;
}

/// @return true if `out` now holds a page to fetch
bool UffdGuest::on_event(const uffd_msg& message, Gfn& out) noexcept {
  switch (message.event) {
    case UFFD_EVENT_PAGEFAULT:
      return on_fault(message.arg.pagefault.address, message.arg.pagefault.flags, out);
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      on_remove(message.arg.remove.start, message.arg.remove.end);
      return false;
    case UFFD_EVENT_FORK: on_fork(static_cast<int>(message.arg.fork.ufd)); return false;
    case UFFD_EVENT_REMAP:
      set_trouble("the guest moved its memory with mremap, which is not supported");
      return false;
    default:
      set_trouble("the kernel sent a userfaultfd event this program does not know");
      return false;
  }
}

bool UffdGuest::on_fault(std::uint64_t address, std::uint64_t flags, Gfn& out) noexcept {
  address -= address % kPageSize;
  if ((flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR)) != 0) {
    set_trouble("a write-protection or minor fault: register the memory for MISSING alone");
    return false;
  }
  const auto page = regions_.page_at(address);
  if (!page) {
    counters_.faults_outside.add(1);
    set_trouble("a fault outside the regions of the handshake");
    return false;
  }
  switch (presence_.state(*page)) {
    case PageState::kPresent: answer_present(*page, address); return false;
    case PageState::kClaimedByGuest: answer_with_zeros(address); return false;
    default: break;
  }
  if (reported(*page)) {
    counters_.faults_repeated.add(1);
    return false;
  }
  set_reported(*page);
  counters_.faults.add(1);
  out = *page;
  return true;
}

/// Nearly always the page came while this message waited, and the kernel says EEXIST. If it is
/// missing all the same, the guest gave it back without EVENT_REMOVE: zeros are right, and only
/// waking would loop for ever. Not so with a mapped file: what is missing in the mapping is there.
void UffdGuest::answer_present(Gfn page, std::uint64_t address) noexcept {
  if (kept_ == nullptr || !kept_->has(page)) return answer_with_zeros(address);
  counters_.faults_raced.add(1);
  wake(address, 1);
}

void UffdGuest::answer_with_zeros(std::uint64_t address) noexcept {
  const auto [nb_pages, errnum] = uffd::zero(uffd(), address, 1);
  if (nb_pages == 1) {
    counters_.faults_zeroed.add(1);
    return;
  }
  if (errnum == EEXIST) counters_.faults_raced.add(1);
  if (errnum == ESRCH) mark_gone();
  // With EAGAIN or ENOMEM the thread faults again and its message is the retry.
  wake(address, 1);
}

void UffdGuest::on_remove(std::uint64_t begin, std::uint64_t end) noexcept {
  for (const Region& r : regions_.regions()) {
    const std::uint64_t from = std::max(begin, r.base);
    const std::uint64_t to = std::min(end, r.base + r.size);
    if (from >= to) continue;
    const std::uint64_t first = (from - r.base + r.offset) / kPageSize;
    const std::uint64_t nb_pages = (to - from) / kPageSize;
    discard_pages(presence_, first, first + nb_pages);
    clear_reported(first, first + nb_pages);
    counters_.removed_pages.add(nb_pages);
  }
  // Who waited for one of these pages faults anew, and is then answered with zeros.
  wake(begin, (end - begin) / kPageSize);
}

void UffdGuest::on_fork(int child_uffd) noexcept {
  UniqueFd child{child_uffd};
  if (forked_.size() < kMaxForks) forked_.push_back(std::move(child));
  set_trouble("the guest forked with its memory under userfaultfd, which is not supported");
}

bool UffdGuest::maps(PageRange pages) const noexcept {
  const auto place = regions_.locate(pages.first);
  return place && place->nb_pages >= pages.nb_pages;
}

// --- into the guest ---------------------------------------------------------------------------

Install UffdGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  return fill(range_of(first.value, pages.size() / kPageSize), pages.data());
}

Install UffdGuest::install_zeros(PageRange pages) noexcept { return fill(pages, nullptr); }

/// @param bytes  of the pages, or nullptr for zeros
Install UffdGuest::fill(PageRange pages, const std::byte* bytes) noexcept {
  if (gone_) return Install::kGone;
  const std::uint64_t begin = pages.first.value;
  const std::uint64_t end = std::min<std::uint64_t>(begin + pages.nb_pages, presence_.nb_pages());
  for (std::uint64_t at = begin; at < end;) {
    const auto place = regions_.locate(Gfn{at});
    if (!place) {  // mapped nowhere: the guest's own since the constructor
      counters_.skipped_pages.add(1);
      ++at;
      continue;
    }
    const std::uint64_t stop = std::min(end, at + place->nb_pages);
    std::uint64_t to = at;
    while (to < stop && presence_.claim(Gfn{to}, PageState::kClaimedByMemtap)) ++to;
    if (to == at) {
      skip(Gfn{at}, place->address);
      ++at;
      continue;
    }
    const PageRange run = range_of(at, to - at);
    const std::byte* source = bytes == nullptr ? nullptr : bytes + (at - begin) * kPageSize;
    if (source != nullptr && is_mapped(run))
      settle_mapped(place->address, run);
    else if (const Install verdict = fill_run(place->address, run, source);
             verdict != Install::kDone)
      return verdict;
    at = to;
  }
  return Install::kDone;
}

bool UffdGuest::is_mapped(PageRange run) const noexcept {
  if (kept_ == nullptr) return false;
  for (std::uint64_t i = 0; i < run.nb_pages; ++i)
    if (!kept_->has(Gfn{run.first.value + i})) return false;
  return true;
}

/// The pages are in the file that the guest maps: whoever waits finds them there.
void UffdGuest::settle_mapped(std::uint64_t address, PageRange run) noexcept {
  bool waited_for = false;
  for (std::uint64_t i = 0; i < run.nb_pages; ++i) waited_for |= reported(Gfn{run.first.value + i});
  settle(run);
  counters_.installed_pages.add(run.nb_pages);
  if (!waited_for) return;  // a fault whose message is still to be read is woken then
  wake(address, run.nb_pages);
  counters_.install_calls.add(1);
}

/// Pages all claimed, all in one region.
Install UffdGuest::fill_run(std::uint64_t address, PageRange run, const std::byte* bytes) noexcept {
  std::uint64_t done = 0;
  std::uint64_t most = run.nb_pages;  // pages to try in one call
  while (done < run.nb_pages) {
    const std::uint64_t at = address + done * kPageSize;
    const std::uint64_t wanted = std::min(most, run.nb_pages - done);
    const auto [nb_pages, errnum] = bytes == nullptr
                                        ? uffd::zero(uffd(), at, wanted)
                                        : uffd::copy(uffd(), at, bytes + done * kPageSize, wanted);
    const PageRange next = range_of(run.first.value + done, std::max<std::uint64_t>(nb_pages, 1));
    if (nb_pages > 0) {
      settle(next);
      (bytes == nullptr ? counters_.zero_pages : counters_.installed_pages).add(nb_pages);
      counters_.install_calls.add(1);
      done += nb_pages;
      most = run.nb_pages;
    } else if (errnum == EEXIST) {
      settle(next);
      wake(at, 1);
      counters_.eexist.add(1);
      ++done;
    } else if (errnum == ENOENT && wanted > 1) {
      most = 1;  // the run crosses mappings, or only a part of it was unmapped
    } else if (errnum == ENOENT) {
      presence_.discard(next.first);
      settle(next);
      counters_.range_gone_pages.add(1);
      ++done;
    } else {
      return give_up(errnum, range_of(run.first.value + done, run.nb_pages - done));
    }
  }
  return Install::kDone;
}

Install UffdGuest::give_up(int errnum, PageRange rest) noexcept {
  for (std::uint64_t i = 0; i < rest.nb_pages; ++i) presence_.unclaim(Gfn{rest.first.value + i});
  switch (errnum) {
    case EAGAIN: counters_.eagain.add(1); return Install::kAgain;
    case ENOMEM: counters_.no_memory.add(1); return Install::kNoMemory;
    case ESRCH: mark_gone(); return Install::kGone;
    default:
      set_trouble("the kernel refused to install a page: is the memory registered for MISSING?");
      return Install::kFailed;
  }
}

/// A page that is not ours to install. A guest that claimed it after a vCPU had faulted on it left
/// that vCPU waiting: it faults anew and is answered with zeros.
void UffdGuest::skip(Gfn page, std::uint64_t address) noexcept {
  counters_.skipped_pages.add(1);
  if (!reported(page)) return;
  clear_reported(page);
  wake(address, 1);
}

void UffdGuest::settle(PageRange pages) noexcept {
  for (std::uint64_t i = 0; i < pages.nb_pages; ++i) {
    const Gfn page{pages.first.value + i};
    presence_.mark_present(page);
    clear_reported(page);
  }
}

void UffdGuest::wake(std::uint64_t address, std::uint64_t nb_pages) noexcept {
  uffd::wake(uffd(), address, nb_pages);
}

// --- at the end -------------------------------------------------------------------------------

/// From here on QEMU can register the memory itself, for a snapshot.
void UffdGuest::release() noexcept {
  for (const Region& r : regions_.regions()) uffd::unregister(uffd(), r.base, r.size / kPageSize);
  constexpr std::byte kAll{1};  // docs/shim.md
  if (keeps_uffd_) send(socket(), &kAll, sizeof kAll, MSG_DONTWAIT | MSG_NOSIGNAL);
  mark_gone();
}

// --- when all else failed ---------------------------------------------------------------------

FailMeans UffdGuest::fail(Gfn page) noexcept {
  if (gone_) return FailMeans::kGone;
  const auto place = regions_.locate(page);
  if (!place || !presence_.claim(page, PageState::kClaimedByMemtap)) {
    if (place) skip(page, place->address);
    return FailMeans::kNotNeeded;
  }
  const int errnum = uffd::poison(uffd(), place->address);
  switch (errnum) {
    case 0:
    case EEXIST:
      settle(range_of(page.value, 1));  // nothing may replace the poison
      if (errnum == 0) counters_.poisoned_pages.add(1);
      wake(place->address, 1);
      return errnum == 0 ? FailMeans::kPoisoned : FailMeans::kNotNeeded;
    case EAGAIN:
      presence_.unclaim(page);
      counters_.eagain.add(1);
      return FailMeans::kAgain;
    default:
      presence_.unclaim(page);
      if (kill()) return FailMeans::kKilled;
      return gone_ ? FailMeans::kGone : FailMeans::kRefused;
  }
}

}  // namespace snowfabric
