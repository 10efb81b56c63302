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

TEST(Domain, IsFoundByItsNumberAndByItsName) {
  FakeXen xen;
  xen.add(DomId{7}, 1);
  xen.store = {{"/local/domain/0/name", "Domain-0"},
               {"/local/domain/3/name", "web"},  // that is destroyed
               {"/local/domain/7/name", "web"}};
  EXPECT_EQ(find_domain(xen, "12")->id(), DomId{12});
  EXPECT_EQ(find_domain(xen, "web")->id(), DomId{7});
  const auto nobody = find_domain(xen, "db");
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().errnum, ENOENT);
  EXPECT_EQ(nobody.error().what, "no domain of this host is named db");
  xen.fail(Call::kStoreList, EPERM);
  EXPECT_EQ(find_domain(xen, "web").error().what, "list /local/domain");
}

TEST(Domain, NamesTheNodesOfItsFolder) {
  FakeXen xen;
  xen.add(kDom, 1);
  const Domain domain{xen, kDom};
  EXPECT_EQ(domain.store_read("memory/target").error().what, "read /local/domain/5/memory/target");
  ASSERT_TRUE(domain.store_write("memory/target", "7"));
  EXPECT_EQ(domain.store_read("memory/target"), "7");
  xen.fail(Call::kStoreWrite, EROFS);
  EXPECT_EQ(domain.store_write("x", "").error().what, "write /local/domain/5/x");
}

}  // namespace
}  // namespace snowfabric::xen::test
