// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/nominated_ram.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <functional>
#include <utility>

#include <fmt/format.h>

#include "fabric/base/page_ranges.hpp"

namespace snowfabric::xen {
namespace {

/// A pause of our own, for a domain that stands already: Xen wants one for the start of paging.
class Paused {
 public:
  static Result<Paused> make(const Domain& domain) {
    if (auto ok = domain.pause(); !ok) return std::unexpected(ok.error());
    return Paused{domain};
  }
  Paused(Paused&& from) noexcept
      : domain_{from.domain_}, paused_{std::exchange(from.paused_, false)} {}
  Paused& operator=(Paused&&) = delete;
  /// For ever: it would crash if it ran.
  void keep() noexcept { paused_ = false; }
  ~Paused() {
    if (paused_) domain_.calls().unpause(domain_.id());
  }

 private:
  explicit Paused(const Domain& domain) noexcept : domain_{domain} {}
  Domain domain_;
  bool paused_ = true;
};

bool is_in(std::span<const std::uint64_t> words, Gfn page) noexcept {
  return !words.empty() && (words[page.value / 64] >> (page.value % 64) & 1U) != 0;
}

void answer_all(DomainPager& pager) noexcept {
  for (DomainPager::Fault fault; pager.take(fault) == PagingRing::Take::kRequest;)
    pager.answer(fault.request.page);
  pager.notify();
}

/// As often as Xen may be asked in vain: its ring is full of requests that come faster than
/// answers.
constexpr unsigned kMaxTries = 1000;

/// @return 0 or the errno of a page
int set_free(DomainPager& pager, std::span<const Gfn> burst) noexcept {
  int errnum = EAGAIN;
  for (unsigned i = 0; i < kMaxTries && errnum == EAGAIN; ++i) {
    errnum = pager.set_free(burst);
    answer_all(pager);
  }
  return errnum;
}

int set_free(DomainPager& pager, PageRange pages, const std::function<bool(Gfn)>& has_it) noexcept {
  std::array<Gfn, DomainPager::kMostFreed> burst;
  const std::uint64_t end = pages.first.value + pages.nb_pages;
  for (Gfn next = pages.first; next.value < end;) {
    std::size_t nb = 0;
    for (; next.value < end && nb < burst.size(); ++next.value)
      if (!has_it(next)) burst[nb++] = next;
    if (nb == 0) continue;
    if (const int errnum = set_free(pager, std::span{burst}.first(nb))) return errnum;
  }
  return 0;
}

Result<void> set_all_free(DomainPager& pager, std::uint64_t nb_pages) {
  const PageRange all{Gfn{0}, static_cast<std::uint32_t>(nb_pages)};
  const int errnum = set_free(pager, all, [](Gfn) { return false; });
  return pager.domain().checked(errnum, "give back memory");
}

/// Of a domain that is not given all its pages: without a pager it crashes at one. With one that
/// does not answer it waits for whoever guards it.
void keep_paging(std::unique_ptr<DomainPager> pager) {
  DomainInfo info;
  if (pager->domain().calls().info(pager->domain().id(), info) == ESRCH) return;
  static auto* const kept =
      new std::vector<std::unique_ptr<DomainPager>>;  // until the process ends
  kept->push_back(std::move(pager));
}

/// The pause is short: should we be killed in it, it outlives us.
Result<std::unique_ptr<DomainPager>> enable_paging(const Domain& domain) {
  const auto paused = Paused::make(domain);
  if (!paused) return std::unexpected(paused.error());
  return DomainPager::enable(domain);
}

}  // namespace

NominatedRam::~NominatedRam() {
  if (all_given_back_) return;
  if (!set_all_free(*pager_, ram_.nb_pages())) keep_paging(std::move(pager_));
}

Result<std::unique_ptr<NominatedRam>> NominatedRam::take(Domain domain, std::uint64_t nb_pages,
                                                         const NominateOptions& options) {
  auto pager = enable_paging(domain);
  if (!pager) return std::unexpected(pager.error());
  if (options.enabled) options.enabled();
  const std::vector<Gfn> all = list_of({Gfn{0}, static_cast<std::uint32_t>(nb_pages)});
  std::vector<Gfn> to_nominate = all, to_copy;
  std::erase_if(to_nominate, [&](Gfn page) {
    return is_in(options.free, page) || std::ranges::binary_search(options.busy, page);
  });
  const auto done = (*pager)->nominate(to_nominate, to_copy);
  to_copy.insert(to_copy.end(), options.busy.begin(), options.busy.end());
  std::ranges::sort(to_copy);
  auto mapped = domain.map(all, Access::kRead);  // not before: nobody else may refer to a page
  if (!done || !mapped) {
    if (!set_all_free(**pager, nb_pages)) keep_paging(std::move(*pager));
    return std::unexpected(done ? mapped.error() : done.error());
  }
  std::unique_ptr<NominatedRam> ram{new NominatedRam{std::move(*pager), std::move(*mapped)}};
  if (auto ok = ram->look_over(options.free, to_copy); !ok) return std::unexpected(ok.error());
  return ram;
}

/// @param to_copy  ascending
Result<void> NominatedRam::look_over(std::span<const std::uint64_t> free,
                                     std::span<const Gfn> to_copy) {
  for (Gfn page{0}; page.value < ram_.nb_pages(); ++page.value) {
    const int errnum = ram_.error(page.value);
    if (errnum != 0 && !is_missing(errnum)) return pager_->domain().checked(errnum, "map", page);
    if (errnum != 0 || is_in(free, page)) {
      append(page, left_out_);
    } else if (std::ranges::binary_search(to_copy, page)) {
      const auto bytes = ram_.page(page.value);
      copies_.push_back({page, {bytes.begin(), bytes.end()}});
    }
  }
  return {};
}

int NominatedRam::give_back(PageRange pages, const std::function<bool(Gfn)>& has_it) noexcept {
  return set_free(*pager_, pages, has_it);
}

/// Where more vCPUs wait than the ring has slots nobody can take over. With all its memory the
/// domain asks for no more; it stands then.
Result<void> NominatedRam::give_back_on_dead_ring(const Domain& domain, std::uint64_t nb_pages,
                                                  const ForeignPages& ring_page) {
  const std::array rings{ring_page.page(0)};
  std::vector<Gfn> asked;  // like all others they are given back
  for (std::uint64_t first = 0; first < nb_pages; first += DomainPager::kMostFreed) {
    const auto nb = std::min<std::uint64_t>(DomainPager::kMostFreed, nb_pages - first);
    const std::vector<Gfn> burst = list_of({Gfn{first}, static_cast<std::uint32_t>(nb)});
    std::vector<int> errors(burst.size(), EAGAIN);
    for (unsigned i = 0; i < kMaxTries && std::ranges::count(errors, EAGAIN) > 0; ++i) {
      domain.calls().paging_free(domain.id(), burst, errors);
      asked.clear();
      if (const auto ok = DomainPager::drain(domain, rings, asked); !ok)
        return std::unexpected(ok.error());
    }
  }
  const auto stands = DomainPager::pause_drained(domain, rings, asked);
  return stands ? Result<void>{} : std::unexpected(stands.error());
}

Result<void> NominatedRam::give_back_all(Domain domain, std::uint64_t nb_pages,
                                         const ForeignPages* ring_page) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  if (info->nb_paged_pages != 0)  // somebody else's: what is not there cannot be given back
    return fail(EBUSY, fmt::format("{} of {} are evicted: somebody else pages it",
                                   info->nb_paged_pages, to_string(domain.id())));
  bool stands = false;
  if (ring_page != nullptr) {
    auto ok = give_back_on_dead_ring(domain, nb_pages, *ring_page);
    if (!ok && ok.error().errnum != ENODEV) return ok;  // that: its paging has not begun, or ended
    stands = ok && !info->paused;
  }
  auto paused = Paused::make(domain);
  if (!paused) return std::unexpected(paused.error());
  if (stands)  // by the pause of before: one is enough
    if (auto ok = domain.unpause(); !ok) return ok;
  auto taken_over = DomainPager::take_over(domain);
  auto done = taken_over ? set_all_free(**taken_over, nb_pages)
                         : Result<void>{std::unexpected(taken_over.error())};
  if (!done) paused->keep();
  return done;
}

}  // namespace snowfabric::xen
