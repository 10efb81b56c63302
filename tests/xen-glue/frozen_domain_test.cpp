// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/frozen_domain.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

using namespace std::chrono_literals;

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 512;
constexpr const char* kSize = "/local/domain/6/memory/static-max";

class FrozenDomainTest : public testing::Test {
 protected:
  FrozenDomainTest() {
    xen.store[kSize] = "2048";
    domain.gs_bases = {0xffff'8000, 0xffff'f000};
    domain.page_table = {{0xffff'8000, Gfn{70}},
                         {0xffff'9000, Gfn{30}},
                         {0xffff'f000, Gfn{30}},
                         {0xffff'b000, Gfn{0xfeff8}}};  // the last is no RAM
    for (std::uint64_t i = 0; i < kNbPages; ++i)
      domain.page(Gfn{i})[5] = static_cast<std::byte>(i % 251);
  }
  [[nodiscard]] Result<FrozenDomain> freeze() const {
    return FrozenDomain::copy(Domain{xen, kDom}, 20ms);
  }
  /// Whatever happens, the parent runs on.
  void expect_running() const { EXPECT_FALSE(domain.info.suspended); }

  mutable FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages, 2);
};

TEST_F(FrozenDomainTest, HoldsRamAndStateAndLetsTheParentRunOn) {
  const auto frozen = freeze();
  ASSERT_TRUE(frozen) << frozen.error().what;
  expect_running();
  EXPECT_EQ(xen.store["/local/domain/6/control/shutdown"], "suspend");
  EXPECT_EQ(frozen->nb_pages, kNbPages);
  EXPECT_TRUE(frozen->missing.empty());
  EXPECT_EQ(frozen->state.context, domain.context);
  EXPECT_EQ(frozen->state.tsc, domain.tsc);
  EXPECT_EQ(frozen->state.eager, (std::vector{Gfn{30}, Gfn{70}}));
  domain.page(Gfn{9})[5] = std::byte{0xff};  // the parent goes on writing
  for (std::uint64_t i = 0; i < kNbPages; ++i) {
    std::array<std::byte, kPageSize> page;
    ASSERT_EQ(
        pread(frozen->memory.get(), page.data(), kPageSize, static_cast<off_t>(i * kPageSize)),
        static_cast<ssize_t>(kPageSize));
    ASSERT_EQ(page[5], static_cast<std::byte>(i % 251));
  }
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(FrozenDomainTest, NobodyCanWriteTheCopy) {
  const auto frozen = freeze();
  ASSERT_TRUE(frozen);
  EXPECT_EQ(pwrite(frozen->memory.get(), "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(FrozenDomainTest, WhatTheBalloonGaveBackIsMissing) {
  domain.drop(Gfn{17});
  domain.drop(Gfn{400});
  const auto frozen = freeze();
  ASSERT_TRUE(frozen);
  EXPECT_EQ(frozen->nb_pages, kNbPages);
  EXPECT_EQ(frozen->missing, (std::vector{Gfn{17}, Gfn{400}}));
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
  EXPECT_EQ(freeze().error().what, "/local/domain/6/memory/static-max = many");
  xen.store[kSize] = "4194304";
  EXPECT_EQ(freeze().error().errnum, ENOTSUP);
  domain.info.hvm = false;
  EXPECT_EQ(freeze().error().what, "domain 6 is neither HVM nor PVH");
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
    testing::Values(Failing{Call::kInfo, 0, "info of domain 6"},
                    Failing{Call::kStoreRead, 0, "read /local/domain/6/memory/static-max"},
                    Failing{Call::kStoreWrite, 0, "write /local/domain/6/control/shutdown"},
                    Failing{Call::kInfo, 2, "info of domain 6"},
                    Failing{Call::kGetContext, 0, "get HVM context of domain 6"},
                    Failing{Call::kGetTsc, 0, "get TSC of domain 6"},
                    Failing{Call::kGsBase, 1, "read a CPU record of domain 6"},
                    Failing{Call::kMap, 0, "map of domain 6, gfn 0x0"}));

}  // namespace
}  // namespace snowfabric::xen::test
