// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/frozen_domain.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_agent.hpp"
#include "tests/xen-glue/page_table_builder.hpp"
#include "xen-glue/domain_pager.hpp"

namespace snowfabric::xen::test {
namespace {

using namespace std::chrono_literals;

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 512;
constexpr std::uint64_t kPerCpu = 0xffff'd001'40e0'9000;  // no index into a table is 0
/// Pages of the per-CPU data that are RAM, and the tables that lead to them.
const std::vector kEager{Gfn{30}, Gfn{70}, Gfn{505}, Gfn{506}, Gfn{507}, Gfn{508}};
constexpr const char* kType = "/libxl/6/type";
constexpr const char* kSize = "/local/domain/6/memory/static-max";

class FrozenDomainTest : public testing::Test {
 protected:
  FrozenDomainTest() {
    xen.store[kSize] = "2048";
    xen.store["/local/domain/6/memory/target"] = "1024";
    xen.store[kType] = "pvh";
    domain.nb_pauses = 0;
    for (std::uint64_t i = 0; i < kNbPages; ++i)
      domain.page(Gfn{i})[5] = static_cast<std::byte>(i % 251);
    PageTableBuilder tables{[this](Gfn page) { return domain.page(page); }, Gfn{505}};
    tables.map(kPerCpu, Gfn{70});
    tables.map(kPerCpu + kPageSize, Gfn{30});
    tables.map(kPerCpu + 3 * kPageSize, Gfn{0xfeff8});  // no RAM
    tables.map(kPerCpu + 80 * kPageSize, Gfn{30});
    domain.cpus = {tables.cpu(kPerCpu), tables.cpu(kPerCpu + 80 * kPageSize)};
  }
  [[nodiscard]] Result<FrozenDomain> freeze() const {
    return FrozenDomain::take(Domain{xen, kDom},
                              {.suspend_timeout = 20ms, .free_pages_timeout = 20ms, .stop = &stop});
  }
  /// Whatever happens, the parent runs on.
  void expect_running() const {
    EXPECT_FALSE(domain.info.suspended);
    EXPECT_FALSE(domain.dirty) << "Xen still notes what it writes";
  }
  [[nodiscard]] static int byte_of(const FrozenDomain& frozen, std::uint64_t page) {
    std::byte byte{};
    EXPECT_EQ(pread(frozen.memory.get(), &byte, 1, static_cast<off_t>(page * kPageSize + 5)), 1);
    return std::to_integer<int>(byte);
  }

  std::atomic<bool> stop{false};
  mutable FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages, 2);
};

TEST_F(FrozenDomainTest, HoldsRamAndStateAndLetsTheParentRunOn) {
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  expect_running();
  EXPECT_EQ(xen.store["/local/domain/6/control/shutdown"], "suspend");
  EXPECT_EQ(frozen->nb_pages, kNbPages);
  EXPECT_EQ(frozen->state.context, domain.context);
  EXPECT_EQ(frozen->state.tsc, domain.tsc);
  EXPECT_EQ(frozen->state.nb_vcpus, 2U);
  EXPECT_EQ(frozen->state.target_kib, 1024U);
  EXPECT_EQ(frozen->state.eager, kEager);
  // Two pages of the pattern are zero, and take no memory.
  EXPECT_EQ(frozen->zeros,
            (std::vector{PageRange{Gfn{0}, 1}, PageRange{Gfn{251}, 1}, PageRange{Gfn{502}, 1}}));
  domain.page(Gfn{9})[5] = std::byte{0xff};  // the parent goes on writing
  for (std::uint64_t i = 0; i < kNbPages; ++i)
    ASSERT_EQ(byte_of(*frozen, i), static_cast<int>(i % 251));
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(FrozenDomainTest, RamThatIsKeptInPlaceIsServedFromBeforeTheParentRunsOn) {
  std::unique_ptr<NominatedRam> ram;
  const auto frozen = FrozenDomain::take(
      Domain{xen, kDom}, {.in_place = InPlace{.begins = [](std::uint64_t) {},
                                              .calls = &xen,
                                              .serve =
                                                  [&](auto taken) {
                                                    EXPECT_TRUE(domain.info.suspended);
                                                    ram = std::move(taken);
                                                    return Result<void>{};
                                                  }}});
  ASSERT_TRUE(frozen) << frozen.error().what;
  expect_running();
  ASSERT_TRUE(ram);
  EXPECT_EQ(domain.p2m(Gfn{100}), FakeDomain::P2m::kNominated);
  EXPECT_EQ(domain.p2m(Gfn{70}), FakeDomain::P2m::kRam) << "Xen would ask for it again and again";
  EXPECT_EQ(frozen->state.eager, kEager);
  EXPECT_EQ(frozen->state.context, domain.context);
  EXPECT_TRUE(frozen->zeros.empty());
  EXPECT_EQ(byte_of(*frozen, 100), 0) << "a copy, too";
}

TEST_F(FrozenDomainTest, FreePagesOfRamThatIsKeptInPlaceAreTheGuests) {
  FakeAgent agent{xen, kDom, kNbPages, Gfn{400}};
  agent.free = {Gfn{200}, Gfn{201}, Gfn{202}};
  xen.on_suspend = [&] { domain.write(Gfn{201}, std::byte{9}); };
  std::unique_ptr<NominatedRam> ram;
  const auto frozen =
      FrozenDomain::take(Domain{xen, kDom}, {.in_place = InPlace{.begins = [](std::uint64_t) {},
                                                                 .calls = &xen,
                                                                 .serve =
                                                                     [&](auto taken) {
                                                                       ram = std::move(taken);
                                                                       return Result<void>{};
                                                                     }}});
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(frozen->nb_free_pages, 3U);
  EXPECT_EQ(frozen->nb_avoided_pages, 2U);
  EXPECT_EQ(frozen->zeros, (std::vector{PageRange{Gfn{200}, 1}, PageRange{Gfn{202}, 1}}));
  EXPECT_EQ(domain.p2m(Gfn{200}), FakeDomain::P2m::kRam);
  EXPECT_EQ(domain.p2m(Gfn{201}), FakeDomain::P2m::kNominated);
}

TEST_F(FrozenDomainTest, AServerThatCannotStartLeavesTheParentAllItsRam) {
  const auto frozen = FrozenDomain::take(
      Domain{xen, kDom},
      {.in_place = InPlace{.begins = [](std::uint64_t) {},
                           .calls = &xen,
                           .serve = [&](auto) { return Result<void>{fail(ENOMEM, "a thread")}; }}});
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ENOMEM);
  expect_running();
  for (std::uint64_t i = 0; i < kNbPages; ++i)
    ASSERT_EQ(domain.p2m(Gfn{i}), FakeDomain::P2m::kRam) << i;
}

TEST_F(FrozenDomainTest, HoldsWhatTheGuestWroteToAPageThatItGotWhileItWasCopied) {
  const Gfn page{301};
  domain.drop(page);
  domain.meanwhile = [&] {
    const bool is_new = domain.p2m(page) == FakeDomain::P2m::kNone;
    ASSERT_EQ(is_new ? xen.populate(kDom, {&page, 1}) : 0, 0);
    std::memset(domain.page(page), 9, kPageSize);  // which Xen does not note
  };
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(byte_of(*frozen, 301), 9);
}

TEST_F(FrozenDomainTest, HoldsWhatTheGuestWroteWhileItWasCopied) {
  int round = 0;
  domain.meanwhile = [&] {
    ++round;
    for (std::uint64_t i = 0; i < 400U >> round; ++i)
      domain.write(Gfn{i}, static_cast<std::byte>(100 + round));
    domain.write(Gfn{300}, std::byte{});
    domain.drop(Gfn{301});
  };
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  expect_running();
  EXPECT_GE(round, 1);
  for (std::uint64_t i = 0; i < 302; ++i) {
    const auto now = std::to_integer<int>(domain.page(Gfn{i})[5]);
    const bool is_zero = std::ranges::any_of(frozen->zeros, [i](const PageRange& range) {
      return i >= range.first.value && i < range.first.value + range.nb_pages;
    });
    ASSERT_EQ(is_zero ? 0 : byte_of(*frozen, i), i == 301 ? 0 : now) << i;
  }
}

TEST_F(FrozenDomainTest, WhatIsWrittenAfterTheLastRoundIsCopiedInThePause) {
  unsigned nb_looks = 0;
  domain.meanwhile = [&] {
    if (++nb_looks > 1) return;
    xen.on_suspend = [&] {
      for (const std::uint64_t page : {8U, 9U, 100U}) domain.write(Gfn{page}, std::byte{0x77});
    };
  };
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(nb_looks, 1U);
  EXPECT_EQ(frozen->nb_pages_in_pause, 3U);
  for (std::uint64_t i = 0; i < kNbPages; ++i)
    ASSERT_EQ(byte_of(*frozen, i), i == 8 || i == 9 || i == 100 ? 0x77 : static_cast<int>(i % 251))
        << i;
}

TEST_F(FrozenDomainTest, AGuestThatWritesAsFastAsItIsCopiedIsFrozenAllTheSame) {
  unsigned nb_looks = 0;
  domain.meanwhile = [&] {
    ++nb_looks;
    for (std::uint64_t i = 0; i < kNbPages; ++i)
      domain.write(Gfn{i}, static_cast<std::byte>(nb_looks));
  };
  ASSERT_TRUE(freeze());
  EXPECT_LE(nb_looks, 5U);
}

TEST_F(FrozenDomainTest, AStopEndsTheCopyAndTheGuestNeverStands) {
  domain.meanwhile = [&] { stop = true; };
  for (std::uint64_t i = 0; i < kNbPages; ++i) domain.page(Gfn{i})[5] = std::byte{1};
  stop = true;
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ECANCELED);
  EXPECT_FALSE(xen.store.contains("/local/domain/6/control/shutdown"));
  expect_running();
}

TEST_F(FrozenDomainTest, AStopIsHeardWhileTheGuestIsWaitedFor) {
  xen.suspends = false;
  xen.on_store_write = [this](const std::string& path, const std::string&) {
    stop = stop || path.ends_with("control/shutdown");
  };
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ECANCELED);
  EXPECT_EQ(xen.store["/local/domain/6/control/shutdown"], "");
  expect_running();
}

TEST_F(FrozenDomainTest, AGuestThatSuspendsTooLateRunsOn) {
  xen.suspends = false;
  xen.on_store_write = [this](const std::string& path, const std::string& value) {
    if (value != "suspend") return;
    xen.store[path] = "";                // it has read the request
    domain.nb_looks_till_suspend = 100;  // more than there are while it is waited for
  };
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ETIMEDOUT);
  EXPECT_EQ(domain.nb_looks_till_suspend, 0U);
  expect_running();
}

TEST_F(FrozenDomainTest, ACloneThatLacksPagesIsRefused) {
  ASSERT_EQ(xen.pause(kDom), 0);
  const auto pager = DomainPager::enable(Domain{xen, kDom});
  ASSERT_TRUE(pager) << pager.error().what;
  std::vector<Gfn> kept;
  ASSERT_TRUE((*pager)->evict({Gfn{5}, 3}, kept));
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ENODATA);
  EXPECT_EQ(frozen.error().what, "domain 6 lacks 3 of its pages: it can be forked once it has all");
}

TEST_F(FrozenDomainTest, WhatABrokenOffFreezeHasLeftIsUndone) {
  const Domain parent{xen, kDom};
  ASSERT_EQ(xen.log_dirty(kDom, true), 0);
  xen.store["/local/domain/6/data/snowfabric/ask"] = "token";
  ASSERT_TRUE(parent.store_write("control/shutdown", "suspend"));
  ASSERT_TRUE(domain.info.suspended);
  give_back(parent);
  expect_running();
  EXPECT_EQ(xen.store["/local/domain/6/data/snowfabric/ask"], "");
  EXPECT_TRUE(freeze());
  give_back(parent);  // of one that nobody freezes
  expect_running();
}

TEST_F(FrozenDomainTest, NobodyCanWriteTheCopy) {
  const auto frozen = freeze();
  ASSERT_TRUE(frozen);
  EXPECT_EQ(pwrite(frozen->memory.get(), "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(FrozenDomainTest, AVcpuThatIsDownHasNoRecord) {
  domain.cpus.pop_back();
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(frozen->state.nb_vcpus, 2U);
  EXPECT_EQ(frozen->state.eager, kEager);
}

TEST_F(FrozenDomainTest, A32BitGuestIsRefused) {
  domain.cpus[1].efer = 0;
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ENOTSUP);
  EXPECT_EQ(frozen.error().what,
            "vCPU 1 of domain 6 is in 32-bit mode: only 64-bit guests can be forked");
  expect_running();
}

TEST_F(FrozenDomainTest, WhatTheBalloonGaveBackReadsAsZeros) {
  domain.drop(Gfn{17});
  domain.drop(Gfn{400});
  const auto frozen = freeze();
  ASSERT_TRUE(frozen);
  EXPECT_EQ(frozen->nb_pages, kNbPages);
  EXPECT_EQ(frozen->zeros,
            (std::vector{PageRange{Gfn{0}, 1}, PageRange{Gfn{17}, 1}, PageRange{Gfn{251}, 1},
                         PageRange{Gfn{400}, 1}, PageRange{Gfn{502}, 1}}));
}

TEST_F(FrozenDomainTest, FreePagesAreLeftOutUnlessTheyAreWritten) {
  FakeAgent agent{xen, kDom, kNbPages, Gfn{500}};
  agent.free = {Gfn{10}, Gfn{11}, Gfn{12}};
  domain.meanwhile = [&] { domain.write(Gfn{11}, std::byte{0x55}); };
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(xen.store["/local/domain/6/data/snowfabric/ask"], "");  // it may claim again
  EXPECT_EQ(frozen->nb_free_pages, 3U);
  EXPECT_EQ(frozen->nb_avoided_pages, 2U);
  EXPECT_EQ(frozen->why_none_avoided, "");
  EXPECT_EQ(frozen->state.bitmap, (PageRange{Gfn{500}, 1}));
  EXPECT_EQ(frozen->zeros,
            (std::vector{PageRange{Gfn{0}, 1}, PageRange{Gfn{10}, 1}, PageRange{Gfn{12}, 1},
                         PageRange{Gfn{251}, 1}, PageRange{Gfn{502}, 1}}));
  EXPECT_EQ(byte_of(*frozen, 11), 0x55);
}

TEST_F(FrozenDomainTest, AGuestThatCannotSayWhatIsFreeIsFrozenWhole) {
  EXPECT_EQ(freeze()->why_none_avoided, "no sf-xen-agent runs in the guest");
  FakeAgent agent{xen, kDom, kNbPages, Gfn{500}};
  agent.silent = true;
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  EXPECT_EQ(frozen->nb_avoided_pages, 0U);
  EXPECT_FALSE(frozen->state.bitmap);
  EXPECT_EQ(frozen->why_none_avoided, "domain 6 was asked what is free: Connection timed out");
}

TEST_F(FrozenDomainTest, AGuestThatDoesNotSuspendTimesOut) {
  xen.suspends = false;
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, ETIMEDOUT);
  EXPECT_EQ(frozen.error().what, "domain 6 was asked to suspend");
}

TEST_F(FrozenDomainTest, SizesThatCannotBeAreRefused) {
  xen.store[kSize] = "many";
  EXPECT_EQ(freeze().error().what, "memory/static-max of domain 6 = many");
  xen.store[kSize] = "4194304";
  EXPECT_EQ(freeze().error().errnum, ENOTSUP);
  xen.store[kType] = "hvm";
  EXPECT_EQ(freeze().error().what, "domain 6 is of type hvm: only pvh can be forked");
  expect_running();
}

struct Failing {
  Call call;
  unsigned nb_good;
  const char* what;
};
class FrozenDomainError : public FrozenDomainTest, public testing::WithParamInterface<Failing> {};

TEST_P(FrozenDomainError, IsNamedAndTheParentRunsOn) {
  xen.fail(GetParam().call, EIO, GetParam().nb_good);
  const auto frozen = freeze();
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().errnum, EIO);
  EXPECT_EQ(frozen.error().what, GetParam().what);
  expect_running();
  EXPECT_EQ(xen.nb_mapped, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    EveryCall, FrozenDomainError,
    testing::Values(Failing{Call::kStoreRead, 0, "read /libxl/6/type"},
                    Failing{Call::kStoreRead, 1, "read /local/domain/6/memory/static-max"},
                    Failing{Call::kLogDirty, 0, "log what is written of domain 6"},
                    Failing{Call::kMap, 0, "map of domain 6, gfn 0x0"},
                    Failing{Call::kTakeDirty, 0, "look what was written of domain 6"},
                    Failing{Call::kStoreWrite, 0, "write /local/domain/6/control/shutdown"},
                    Failing{Call::kInfo, 0, "info of domain 6"},
                    Failing{Call::kTakeDirty, 1, "look what was written of domain 6"},
                    Failing{Call::kInfo, 1, "info of domain 6"},
                    Failing{Call::kInfo, 2, "info of domain 6"},
                    Failing{Call::kGetContext, 0, "get HVM context of domain 6"},
                    Failing{Call::kGetTsc, 0, "get TSC of domain 6"},
                    Failing{Call::kCpu, 1, "read a CPU record of domain 6"},
                    Failing{Call::kCpu, 3, "read a CPU record of domain 6"},
                    Failing{Call::kStoreRead, 3, "read /local/domain/6/memory/target"}));

}  // namespace
}  // namespace snowfabric::xen::test
