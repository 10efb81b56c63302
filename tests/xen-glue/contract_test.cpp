// SPDX-License-Identifier: BSD-3-Clause
// What the rest of xen-glue/ takes for granted of Xen. Linked once with the fake and once with the
// real libraries: see bed.hpp.
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/xen-glue/bed.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/domain_pager.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr std::uint32_t kNbPages = 64;

class XenContract : public testing::Test {
 protected:
  Bed bed = make_bed();
  XenCalls& xen = bed.calls;
  Domain domain{xen, bed.domain};
  // Where pages are missing the end of a pager leaves its ring.
  void TearDown() override { EXPECT_EQ(xen.paging_disable(bed.domain), 0); }
  alignas(kPageSize) std::byte buffer[kPageSize];

  [[nodiscard]] Gfn at(std::uint64_t index) const { return {bed.first.value + index}; }
  [[nodiscard]] std::vector<Gfn> some(std::uint64_t nb_pages) const {
    std::vector<Gfn> pages;
    for (std::uint64_t i = 0; i < nb_pages; ++i) pages.push_back(at(i));
    return pages;
  }
  void fill(Gfn page, int value) const {
    const auto mapped = domain.map_page(page, Access::kReadWrite);
    ASSERT_TRUE(mapped) << mapped.error().what;
    std::memset(mapped->page(0).data(), value, kPageSize);
  }
  [[nodiscard]] int value_of(Gfn page) const {
    const auto mapped = domain.map_page(page, Access::kRead);
    return mapped ? std::to_integer<int>(mapped->page(0)[kPageSize - 1]) : -1;
  }
  /// @pre the pages are evicted
  void expect_that_the_next_pager_loads_all(int value) {
    const auto next = DomainPager::take_over(domain);
    ASSERT_TRUE(next) << next.error().what << ": " << std::strerror(next.error().errnum);
    std::memset(buffer, value, kPageSize);
    for (std::uint64_t i = 0; i < kNbPages; ++i) ASSERT_EQ((*next)->load(at(i), buffer), 0);
    EXPECT_EQ(value_of(at(kNbPages - 1)), value);
  }
  [[nodiscard]] std::uint64_t nb_paged() const { return domain.info()->nb_paged_pages; }
};

TEST_F(XenContract, InfoTellsWhatTheDomainIs) {
  const auto info = domain.info();
  ASSERT_TRUE(info) << info.error().what;
  EXPECT_TRUE(info->hvm);
  EXPECT_TRUE(info->hap);
  EXPECT_TRUE(info->paused);
  EXPECT_FALSE(info->suspended);
  EXPECT_GE(info->nb_pages, 64U * 256);
  EXPECT_GE(info->nb_vcpus, 1U);
}

TEST_F(XenContract, NobodysCallsAreESRCH) {
  std::byte* first;
  std::uint32_t port;
  Gfn page = at(0);
  DomainInfo info;
  TscInfo tsc;
  std::vector<std::byte> context(16);
  std::vector<int> errors(1);
  EXPECT_EQ(xen.info(bed.nobody, info), ESRCH);
  EXPECT_EQ(xen.pause(bed.nobody), ESRCH);
  EXPECT_EQ(xen.unpause(bed.nobody), ESRCH);
  EXPECT_EQ(xen.resume(bed.nobody), ESRCH);
  EXPECT_EQ(xen.destroy(bed.nobody), ESRCH);
  EXPECT_EQ(xen.populate(bed.nobody, {&page, 1}), ESRCH);
  EXPECT_EQ(xen.depopulate(bed.nobody, page), ESRCH);
  std::unique_ptr<EventPort> bound;
  EXPECT_EQ(xen.bind(bed.nobody, 1, bound), ESRCH);
  EXPECT_EQ(bound, nullptr);
  EXPECT_EQ(xen.paging_enable(bed.nobody, port), ESRCH);
  EXPECT_EQ(xen.paging_disable(bed.nobody), ESRCH);
  EXPECT_EQ(xen.paging_resume(bed.nobody), ESRCH);
  xen.paging_evict(bed.nobody, {&page, 1}, errors);
  EXPECT_EQ(errors[0], ESRCH);
  xen.paging_nominate(bed.nobody, {&page, 1}, errors);
  EXPECT_EQ(errors[0], ESRCH);
  xen.paging_free(bed.nobody, {&page, 1}, errors);
  EXPECT_EQ(errors[0], ESRCH);
  EXPECT_EQ(xen.paging_load(bed.nobody, page, buffer), ESRCH);
  EXPECT_EQ(xen.paging_ring_page(bed.nobody, page), ESRCH);
  std::uint64_t word = 0;
  EXPECT_EQ(xen.set_max_pages(bed.nobody, 1), ESRCH);
  EXPECT_EQ(xen.log_dirty(bed.nobody, true), ESRCH);
  EXPECT_EQ(xen.take_dirty(bed.nobody, {&word, 1}), ESRCH);
  EXPECT_EQ(xen.get_context(bed.nobody, context), ESRCH);
  EXPECT_EQ(xen.set_context(bed.nobody, context), ESRCH);
  EXPECT_EQ(xen.get_tsc(bed.nobody, tsc), ESRCH);
  EXPECT_EQ(xen.set_tsc(bed.nobody, tsc), ESRCH);
  // Xen maps nothing and says so of each page.
  const int mapped = xen.map(bed.nobody, Access::kRead, {&page, 1}, errors, first);
  EXPECT_TRUE(mapped != 0 || errors[0] != 0);
  if (mapped == 0) xen.unmap(first, 1);
}

TEST_F(XenContract, AMappingSeesWhatAnotherOneWrote) {
  const auto pages = some(kNbPages);
  for (std::uint64_t i = 0; i < kNbPages; ++i) fill(at(i), static_cast<int>(i + 1));
  const auto mapped = domain.map(pages, Access::kRead);
  ASSERT_TRUE(mapped) << mapped.error().what;
  ASSERT_EQ(mapped->nb_pages(), kNbPages);
  for (std::uint64_t i = 0; i < kNbPages; ++i) {
    ASSERT_EQ(mapped->error(i), 0);
    EXPECT_EQ(std::to_integer<std::uint64_t>(mapped->page(i)[17]), i + 1);
  }
}

TEST_F(XenContract, AHoleIsAnErrorOfThatPageAlone) {
  const std::vector<Gfn> pages{at(0), bed.hole, at(1)};
  const auto mapped = domain.map(pages, Access::kRead);
  ASSERT_TRUE(mapped) << mapped.error().what;
  EXPECT_EQ(mapped->error(0), 0);
  EXPECT_EQ(mapped->error(1), EINVAL);
  EXPECT_EQ(mapped->error(2), 0);
}

TEST_F(XenContract, AnEvictedPageIsMissing) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({at(1), 1}, kept));
  const auto mapped = domain.map(some(3), Access::kRead);
  ASSERT_TRUE(mapped) << mapped.error().what;
  EXPECT_EQ(mapped->error(0), 0);
  EXPECT_TRUE(is_missing(mapped->error(1)));
  EXPECT_EQ(mapped->error(2), 0);
}

TEST_F(XenContract, APageIsAskedForOnceUntilItIsLoaded) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  const std::vector pages{at(4), at(5), at(6)};
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({at(5), 1}, kept));
  EXPECT_TRUE(kept.empty());
  for (const std::size_t nb_expected : {1U, 0U}) {
    const auto mapped = domain.map(pages, Access::kRead);
    EXPECT_TRUE(mapped && is_missing(mapped->error(1)));
    std::size_t nb_requests = 0;
    DomainPager::Fault fault;
    PagingRing::Take taken;
    for (; (taken = (*pager)->take(fault)) == PagingRing::Take::kRequest; ++nb_requests)
      EXPECT_EQ(fault.request.page, at(5));
    EXPECT_EQ(taken, PagingRing::Take::kNone);
    EXPECT_EQ(nb_requests, nb_expected);
    (*pager)->answer(at(5));  // and not loaded
    (*pager)->notify();
  }
  EXPECT_EQ((*pager)->load(at(5), buffer), 0);
}

TEST_F(XenContract, WhatIsWrittenIsNotedUntilItIsTaken) {
  ASSERT_EQ(xen.log_dirty(bed.domain, true), 0);
  EXPECT_EQ(xen.log_dirty(bed.domain, true), EINVAL);
  std::vector<std::uint64_t> words((bed.first.value + kNbPages + 63) / 64, ~std::uint64_t{0});
  ASSERT_EQ(xen.take_dirty(bed.domain, words), 0);
  // The domain does not run, and what dom0 writes by a mapping is not noted.
  for (const std::uint64_t word : words) EXPECT_EQ(word, 0U);
  ASSERT_EQ(xen.log_dirty(bed.domain, false), 0);
  ASSERT_EQ(xen.log_dirty(bed.domain, true), 0);  // and anew
  ASSERT_EQ(xen.log_dirty(bed.domain, false), 0);
}

TEST_F(XenContract, PagesThatComeAndGoAreNotNoted) {
  ASSERT_EQ(xen.log_dirty(bed.domain, true), 0);
  const auto before = domain.info()->nb_pages;
  ASSERT_EQ(xen.depopulate(bed.domain, at(0)), 0);
  EXPECT_EQ(domain.info()->nb_pages, before - 1);
  std::vector<std::uint64_t> words((bed.first.value + kNbPages + 63) / 64, ~std::uint64_t{0});
  ASSERT_EQ(xen.take_dirty(bed.domain, words), 0);
  EXPECT_TRUE(std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; }));
  const Gfn page = at(0);
  ASSERT_EQ(xen.populate(bed.domain, {&page, 1}), 0);
  ASSERT_EQ(xen.take_dirty(bed.domain, words), 0);
  EXPECT_TRUE(std::ranges::all_of(words, [](std::uint64_t word) { return word == 0; }));
  ASSERT_EQ(xen.log_dirty(bed.domain, false), 0);
}

TEST_F(XenContract, APageThatWasTakenAwayIsNone) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  const Gfn page = at(0);
  ASSERT_EQ(xen.depopulate(bed.domain, page), 0);
  EXPECT_EQ(xen.depopulate(bed.domain, page), EINVAL);
  std::vector<Gfn> refused, kept;
  EXPECT_TRUE((*pager)->nominate(std::array{page}, refused));
  EXPECT_EQ(refused, std::vector{page});
  EXPECT_TRUE((*pager)->evict({page, 1}, kept));
  EXPECT_EQ(kept, std::vector{page});
  EXPECT_EQ((*pager)->load(page, buffer), ENOENT);
  std::vector<int> errors(1);
  xen.paging_free(bed.domain, {&page, 1}, errors);
  EXPECT_EQ(errors[0], EINVAL);
  EXPECT_EQ(xen.populate(bed.domain, {&page, 1}), 0);
}

TEST_F(XenContract, OnlyASuspendedDomainIsResumed) { EXPECT_EQ(xen.resume(bed.domain), EINVAL); }

TEST_F(XenContract, AShellGrowsToTheMostItMayHave) {
  const auto before = domain.info()->nb_pages;
  const Gfn next{bed.beyond.value + 1};
  ASSERT_EQ(xen.set_max_pages(bed.domain, before + 1), 0);
  ASSERT_EQ(xen.populate(bed.domain, {&bed.beyond, 1}), 0);
  EXPECT_EQ(domain.info()->nb_pages, before + 1);
  EXPECT_EQ(xen.populate(bed.domain, {&next, 1}), EBUSY);
  EXPECT_EQ(xen.depopulate(bed.domain, bed.beyond), 0);
  // Pages that are evicted do not count, and the domain is to have them again.
  EXPECT_EQ(xen.set_max_pages(bed.domain, before + 1024), 0);
}

TEST_F(XenContract, APagerTakesOverFromOneThatIsThere) {
  const auto first = DomainPager::enable(domain);
  ASSERT_TRUE(first) << first.error().what;
  std::vector<Gfn> kept;
  ASSERT_TRUE((*first)->evict({at(0), kNbPages}, kept));
  expect_that_the_next_pager_loads_all(7);
}

TEST_F(XenContract, APagerTakesOverFromOneThatHasEnded) {
  EXPECT_EQ(xen.paging_disable(bed.domain), 0);  // of which there is none yet
  std::vector<Gfn> kept;
  {
    const auto first = DomainPager::enable(domain);
    ASSERT_TRUE(first) << first.error().what;
    ASSERT_TRUE((*first)->evict({at(0), kNbPages}, kept));
  }
  expect_that_the_next_pager_loads_all(8);
}

TEST_F(XenContract, AnEvictedPageIsLoadedOnce) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what << ": " << std::strerror(pager.error().errnum);
  const auto before = nb_paged();
  std::vector<Gfn> kept;
  const auto ok = (*pager)->evict({at(0), kNbPages}, kept);
  ASSERT_TRUE(ok) << ok.error().what;
  EXPECT_TRUE(kept.empty());
  EXPECT_EQ(nb_paged(), before + kNbPages);
  for (std::uint64_t i = 0; i < kNbPages; ++i) {
    std::memset(buffer, static_cast<int>(i + 100), kPageSize);
    EXPECT_EQ((*pager)->load(at(i), buffer), 0);
    EXPECT_EQ((*pager)->load(at(i), buffer), ENOENT);
  }
  EXPECT_EQ(nb_paged(), before);
  for (std::uint64_t i = 0; i < kNbPages; ++i)
    EXPECT_EQ(value_of(at(i)), static_cast<int>(i + 100));
}

TEST_F(XenContract, APageThatIsPopulatedWhileEvictedIsNotLoaded) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({at(0), kNbPages}, kept));
  const auto pages = some(kNbPages);
  const auto ok = domain.populate(pages);
  ASSERT_TRUE(ok) << ok.error().what;
  EXPECT_EQ((*pager)->load(at(0), buffer), ENOENT);
  EXPECT_EQ(nb_paged(), 0U);
}

TEST_F(XenContract, ASecondPagerIsRefusedUntilTheFirstIsGone) {
  for (int round = 0; round < 2; ++round) {
    const auto pager = DomainPager::enable(domain);
    ASSERT_TRUE(pager) << pager.error().what << ": " << std::strerror(pager.error().errnum);
    std::uint32_t port;
    EXPECT_EQ(xen.paging_enable(bed.domain, port), EBUSY);
  }
}

TEST_F(XenContract, APagerWithNothingToDoIsSilent) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  DomainPager::Fault fault;
  (*pager)->acknowledge();
  (*pager)->acknowledge();  // does not block
  EXPECT_EQ((*pager)->take(fault), PagingRing::Take::kNone);
  pollfd ready{(*pager)->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, 0), 0);
}

TEST_F(XenContract, OnlyWhatIsThereIsEvicted) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  const std::vector pages{at(0), bed.hole, at(0), at(1)};
  std::vector<int> errors(pages.size(), -1);
  xen.paging_evict(bed.domain, pages, errors);
  EXPECT_EQ(errors, (std::vector{0, EBUSY, EBUSY, 0}));
  EXPECT_EQ(nb_paged(), 2U);
}

TEST_F(XenContract, ANominatedPageStaysAndCanBeMapped) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  const std::vector pages{at(20), at(21), at(22)};
  fill(pages[0], 7);
  std::vector<Gfn> refused;
  ASSERT_TRUE((*pager)->nominate(pages, refused));
  EXPECT_EQ(refused, std::vector<Gfn>{});
  EXPECT_EQ(value_of(pages[0]), 7);
  DomainPager::Fault fault;
  EXPECT_EQ((*pager)->take(fault), PagingRing::Take::kNone) << "a mapping asked for it";
  EXPECT_EQ((*pager)->load(pages[0], buffer), ENOENT);
  EXPECT_EQ((*pager)->set_free(pages), 0);
}

TEST_F(XenContract, ANominatedPageThatIsGivenBackKeepsItsBytes) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  fill(at(20), 7);
  std::vector<Gfn> refused;
  ASSERT_TRUE((*pager)->nominate(std::array{at(20)}, refused));
  EXPECT_EQ((*pager)->set_free(std::array{at(20)}), 0);
  DomainPager::Fault fault;
  ASSERT_EQ((*pager)->take(fault), PagingRing::Take::kRequest);
  EXPECT_EQ(fault.request.page, at(20));
  EXPECT_FALSE(fault.request.holds_vcpu());
  (*pager)->answer(at(20));
  (*pager)->notify();
  EXPECT_EQ((*pager)->set_free(std::array{at(20)}), 0);
  EXPECT_EQ((*pager)->take(fault), PagingRing::Take::kNone) << "of a page that the guest has";
  EXPECT_EQ(value_of(at(20)), 7);
  ASSERT_TRUE((*pager)->nominate(std::array{at(20)}, refused));
  EXPECT_EQ(refused, std::vector<Gfn>{}) << "it was not given back";
  EXPECT_EQ((*pager)->set_free(std::array{at(20)}), 0);
}

TEST_F(XenContract, WhereTheRingIsFullAPageIsNotGivenBackYet) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> pages, refused;
  for (std::uint64_t i = 0; i < 12; ++i) pages.push_back(at(20 + i));
  ASSERT_TRUE((*pager)->nominate(pages, refused));
  std::vector<int> errors(pages.size());
  xen.paging_free(bed.domain, pages, errors);
  EXPECT_GT(std::ranges::count(errors, 0), 3);
  EXPECT_GT(std::ranges::count(errors, EAGAIN), 0);
  EXPECT_EQ(std::ranges::count(errors, 0) + std::ranges::count(errors, EAGAIN), 12);
  DomainPager::Fault fault;
  while ((*pager)->take(fault) == PagingRing::Take::kRequest) (*pager)->answer(fault.request.page);
  (*pager)->notify();
  xen.paging_free(bed.domain, pages, errors);
  EXPECT_EQ(std::ranges::count(errors, 0), 12);
}

TEST_F(XenContract, TheRingOfAPagerThatIsDeadCanBeDrained) {
  const auto ring_page = DomainPager::map_ring_page(domain);
  ASSERT_TRUE(ring_page) << ring_page.error().what;
  EXPECT_EQ(xen.paging_resume(bed.domain), ENODEV);
  const auto dead = DomainPager::enable(domain);
  ASSERT_TRUE(dead) << dead.error().what;
  std::vector<Gfn> pages, refused, asked;
  for (std::uint64_t i = 0; i < 12; ++i) pages.push_back(at(20 + i));
  ASSERT_TRUE((*dead)->nominate(pages, refused));
  std::vector<int> errors(pages.size());
  xen.paging_free(bed.domain, pages, errors);
  const auto nb_asked = static_cast<std::size_t>(std::ranges::count(errors, 0));
  ASSERT_LT(nb_asked, 12U) << "the ring was not full";
  const auto was_full = DomainPager::drain(domain, std::array{ring_page->page(0)}, asked);
  ASSERT_TRUE(was_full) << was_full.error().what;
  EXPECT_EQ(asked.size(), nb_asked);
  xen.paging_free(bed.domain, pages, errors);
  EXPECT_EQ(std::ranges::count(errors, 0), 12) << "there was no room in the ring";
  ASSERT_TRUE(DomainPager::drain(domain, std::array{ring_page->page(0)}, asked));
  EXPECT_EQ(asked.size(), 12U);
}

TEST_F(XenContract, OnlyWhatIsThereAndNotNominatedIsNominated) {
  const auto pager = DomainPager::enable(domain);
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> refused;
  ASSERT_TRUE((*pager)->nominate(std::array{at(20), at(20), bed.hole}, refused));
  EXPECT_EQ(refused, (std::vector{at(20), bed.hole}));
  std::vector<int> errors(1);
  xen.paging_free(bed.domain, {&bed.hole, 1}, errors);
  EXPECT_EQ(errors[0], EINVAL);
  EXPECT_EQ((*pager)->set_free(std::array{at(20), bed.hole}), 0);
}

TEST_F(XenContract, PausesAreCounted) {
  ASSERT_TRUE(domain.pause());
  ASSERT_TRUE(domain.unpause());
  EXPECT_TRUE(domain.info()->paused);
}

TEST_F(XenContract, ContextAndTscComeBackAsTheyWereSet) {
  const auto context = domain.context();
  ASSERT_TRUE(context) << context.error().what;
  EXPECT_GT(context->size(), 500U);
  EXPECT_TRUE(domain.set_context(*context));
  const auto tsc = domain.tsc();
  ASSERT_TRUE(tsc) << tsc.error().what;
  EXPECT_GT(tsc->khz, 0U);
  EXPECT_TRUE(domain.set_tsc(*tsc));
  const std::vector<std::byte> junk(16);
  EXPECT_FALSE(domain.set_context(junk));
}

TEST_F(XenContract, XenstoreKnowsTheSizeAndNoNodeThatIsNotThere) {
  const std::string own =
      "/local/domain/" + std::to_string(static_cast<unsigned>(bed.domain)) + "/";
  std::string text;
  ASSERT_EQ(xen.store_read(own + "memory/static-max", text), 0);
  EXPECT_GE(std::stoul(text), 64U * 1024);
  EXPECT_EQ(xen.store_read(own + "no/such/node", text), ENOENT);
  ASSERT_EQ(xen.store_write(own + "control/snowfabric", "x y"), 0);
  ASSERT_EQ(xen.store_read(own + "control/snowfabric", text), 0);
  EXPECT_EQ(text, "x y");
  std::vector<std::string> names;
  ASSERT_EQ(xen.store_list("/local/domain", names), 0);
  EXPECT_NE(std::ranges::find(names, std::to_string(static_cast<unsigned>(bed.domain))),
            names.end());
  EXPECT_EQ(xen.store_list("/no/such", names), ENOENT);
}

TEST_F(XenContract, AVcpuThatIsDownHasNoRecord) {
  CpuRecord cpu;
  EXPECT_EQ(xen.cpu(bed.domain, 0, cpu), 0);
  EXPECT_EQ(xen.cpu(bed.domain, 1, cpu), ENODATA);
  EXPECT_EQ(xen.cpu(bed.domain, 100, cpu), ENOENT);
  EXPECT_EQ(xen.cpu(bed.nobody, 0, cpu), ESRCH);
}

}  // namespace
}  // namespace snowfabric::xen::test
