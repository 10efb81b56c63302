// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/domain.hpp"

#include <cerrno>
#include <cstring>
#include <functional>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{5};

struct Failing {
  Call call;
  std::function<Error(const Domain&)> run;
  const char* what;
};

template <class T>
Error error_of(const Result<T>& result) {
  return result ? Error{0, "no error"} : result.error();
}

class DomainError : public testing::TestWithParam<Failing> {};

TEST_P(DomainError, NamesTheCallTheDomainAndThePage) {
  FakeXen xen;
  xen.add(kDom, 16);
  xen.fail(GetParam().call, EIO);
  const Error error = GetParam().run(Domain{xen, kDom});
  EXPECT_EQ(error.errnum, EIO);
  EXPECT_EQ(error.what, GetParam().what);
}

const std::vector<Gfn> kPages{Gfn{0xa}, Gfn{0xb}};

INSTANTIATE_TEST_SUITE_P(
    EveryCall, DomainError,
    testing::Values(
        Failing{Call::kInfo, [](const Domain& d) { return error_of(d.info()); },
                "info of domain 5"},
        Failing{Call::kPause, [](const Domain& d) { return error_of(d.pause()); },
                "pause of domain 5"},
        Failing{Call::kUnpause, [](const Domain& d) { return error_of(d.unpause()); },
                "unpause of domain 5"},
        Failing{Call::kResume, [](const Domain& d) { return error_of(d.resume()); },
                "resume of domain 5"},
        Failing{Call::kGetContext, [](const Domain& d) { return error_of(d.context()); },
                "get HVM context of domain 5"},
        Failing{Call::kSetContext, [](const Domain& d) { return error_of(d.set_context({})); },
                "set HVM context of domain 5"},
        Failing{Call::kGetTsc, [](const Domain& d) { return error_of(d.tsc()); },
                "get TSC of domain 5"},
        Failing{Call::kSetTsc, [](const Domain& d) { return error_of(d.set_tsc({})); },
                "set TSC of domain 5"},
        Failing{Call::kPopulate, [](const Domain& d) { return error_of(d.populate(kPages)); },
                "populate of domain 5, gfn 0xa"},
        Failing{Call::kMap, [](const Domain& d) { return error_of(d.map(kPages, Access::kRead)); },
                "map of domain 5, gfn 0xa"}));

TEST(Domain, ReadsInBurstsAndUnmapsEachOfThem) {
  constexpr std::uint64_t kNbPages = 2 * kMapBurstPages + 3;
  FakeXen xen;
  FakeDomain& guest = xen.add(kDom, kNbPages);
  std::vector<Gfn> pages;
  for (std::uint64_t i = 0; i < kNbPages; ++i) {
    guest.page(Gfn{i})[0] = static_cast<std::byte>(i % 251);
    pages.push_back(Gfn{kNbPages - 1 - i});
  }
  std::vector<std::byte> out(kNbPages * kPageSize);
  std::vector<Gfn> missing;
  ASSERT_TRUE((Domain{xen, kDom}.read(pages, out, missing)));
  EXPECT_TRUE(missing.empty());
  EXPECT_EQ(xen.nb_mapped, 0U);
  for (std::uint64_t i = 0; i < kNbPages; ++i)
    ASSERT_EQ(out[i * kPageSize], static_cast<std::byte>((kNbPages - 1 - i) % 251));
}

TEST(Domain, AFailedBurstUnmapsTheOthers) {
  FakeXen xen;
  xen.add(kDom, kMapBurstPages + 1);
  xen.fail(Call::kMap, ENOMEM, 1);
  std::vector<Gfn> pages, missing;
  for (std::uint64_t i = 0; i <= kMapBurstPages; ++i) pages.push_back(Gfn{i});
  std::vector<std::byte> out(pages.size() * kPageSize);
  const auto ok = Domain{xen, kDom}.read(pages, out, missing);
  ASSERT_FALSE(ok);
  EXPECT_EQ(ok.error().what, "map of domain 5, gfn 0x400");
  EXPECT_EQ(xen.nb_mapped, 0U);
}

}  // namespace
}  // namespace snowfabric::xen::test
