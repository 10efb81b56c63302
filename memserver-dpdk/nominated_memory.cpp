// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/nominated_memory.hpp"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include <sys/eventfd.h>

#include "memserver-dpdk/progress.hpp"

namespace snowfabric {

using xen::PagingRing;

namespace {

/// From where nobody hears of an error.
void complain(const char* what) noexcept { std::fprintf(stderr, "memserver: %s\n", what); }

}  // namespace

Result<std::unique_ptr<NominatedMemory>> NominatedMemory::serve(
    std::shared_ptr<xen::XenCalls> calls, std::unique_ptr<xen::NominatedRam> ram,
    std::function<void()> given_back, std::optional<int> progress_fd) {
  std::unique_ptr<NominatedMemory> memory{
      new NominatedMemory{std::move(calls), std::move(ram), std::move(given_back), progress_fd}};
  if (auto ok = memory->start(); !ok) return std::unexpected(ok.error());
  return memory;
}

NominatedMemory::NominatedMemory(std::shared_ptr<xen::XenCalls> calls,
                                 std::unique_ptr<xen::NominatedRam> ram,
                                 std::function<void()> given_back, std::optional<int> progress_fd)
    : given_back_{std::move(given_back)},
      calls_{std::move(calls)},
      ram_{std::move(ram)},
      progress_fd_{progress_fd},
      stop_{eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)} {}

Result<void> NominatedMemory::start() {
  auto pages = AsideMemory::make(ram_->bytes());
  if (!pages) return std::unexpected(pages.error());
  pages_ = std::move(*pages);
  for (const auto& copy : ram_->take_copies()) pages_->set_aside(copy.page, copy.bytes);
  for (const PageRange& range : ram_->left_out())
    for (std::uint32_t i = 0; i < range.nb_pages; ++i)
      pages_->leave_out(Gfn{range.first.value + i});
  if (!stop_) return fail(errno, "eventfd");
  if (const int errnum = pthread_create(&thread_, nullptr, &NominatedMemory::run, this))
    return fail(errnum, "start the copy-on-access thread");
  started_ = true;
  pthread_setname_np(thread_, "sf-cow");
  return {};
}

void NominatedMemory::end_thread() noexcept {
  if (!std::exchange(started_, false)) return;
  eventfd_write(stop_.get(), 1);
  pthread_join(thread_, nullptr);
}

NominatedMemory::~NominatedMemory() {
  if (!started_) return;  // the pages go back as their owner goes
  end_thread();
  if (give_back()) {
    ram_->all_given_back();
    ram_.reset();
    given_back_();
  } else {
    // The end of its pager would crash the domain at a page that it has not got: let it wait there
    // for its guard.
    complain("the parent could not be given all its memory: that is left to its guard");
    [[maybe_unused]] static const xen::NominatedRam* kept = nullptr;
    kept = ram_.release();
  }
}

// --- what the domain touches -----------------------------------------------------------------

void* NominatedMemory::run(void* self) {
  static_cast<NominatedMemory*>(self)->serve_faults();
  return nullptr;
}

void NominatedMemory::serve_faults() {
  std::array<pollfd, 2> wait{{{ram_->pager().fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  for (;;) {
    if (poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) break;
    if (wait[1].revents != 0) return;
    if (!answer_faults() || (wait[0].revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) break;
  }
  complain("the paging of the parent is broken: it stands until this memserver ends");
}

/// @return false: there is no such ring any more
bool NominatedMemory::answer_faults() {
  xen::DomainPager& pager = ram_->pager();
  pager.acknowledge();
  xen::DomainPager::Fault fault;
  for (;;) {
    const auto taken = pager.take(fault);
    if (taken != PagingRing::Take::kRequest) return taken == PagingRing::Take::kNone;
    keep(fault.request);
    pager.answer(fault.request.page);
    pager.notify();  // at once: until then Xen itself may ask again and again, and fill the ring
  }
}

/// One that the guest gave back is still mapped here, and as it was.
void NominatedMemory::keep(const xen::PagingRequest& request) noexcept {
  if (request.page.value < pages_->nb_pages()) pages_->set_aside(request.page);
  if (!request.holds_vcpu())
    ram_->pager().set_free({&request.page, 1});  // its answer alone does not
}

// --- the end ---------------------------------------------------------------------------------

/// @return false: not all of it, and the domain is alive
bool NominatedMemory::give_back() noexcept {
  constexpr std::uint64_t kBurst = 256;
  std::optional<Progress> progress;
  if (progress_fd_)
    progress.emplace("give the parent its memory back", pages_->nb_pages() * kPageSize,
                     *progress_fd_);
  for (std::uint64_t first = 0; first < pages_->nb_pages(); first += kBurst) {
    const auto nb = static_cast<std::uint32_t>(std::min(kBurst, pages_->nb_pages() - first));
    // What is aside was answered for, or never nominated.
    const auto has_it = [this](Gfn page) { return pages_->is_aside(page); };
    if (ram_->give_back({Gfn{first}, nb}, has_it) != 0) return is_gone();
    if (progress) progress->add(nb * kPageSize);
  }
  return true;
}

bool NominatedMemory::is_gone() noexcept {
  xen::DomainInfo info;
  const int errnum = calls_->info(ram_->pager().domain().id(), info);
  return errnum == ESRCH || (errnum == 0 && info.dying);
}

}  // namespace snowfabric
