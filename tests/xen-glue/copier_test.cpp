// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/copier.hpp"

#include <unistd.h>

#include <cerrno>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 2 * kMapBurstPages + 10;

class CopierTest : public testing::Test {
 protected:
  CopierTest() {
    for (std::uint64_t i = 0; i < kNbPages; ++i)
      domain.page(Gfn{i})[7] = static_cast<std::byte>(i % 253);
  }
  FakeXen xen;
  FakeDomain& domain = xen.add(kDom, kNbPages);
  Result<UniqueFd> fd = make_copy(kNbPages);
};

TEST_F(CopierTest, EachPageGoesToItsPlaceOverSeveralBursts) {
  ASSERT_TRUE(fd);
  Copier copier{Domain{xen, kDom}, fd->get(), kNbPages};
  ASSERT_TRUE(copier.begin());
  ASSERT_TRUE(copier.copy({}));
  for (std::uint64_t i = 0; i < kNbPages; ++i) {
    std::byte byte{};
    ASSERT_EQ(pread(fd->get(), &byte, 1, static_cast<off_t>(i * kPageSize + 7)), 1);
    ASSERT_EQ(byte, static_cast<std::byte>(i % 253)) << i;
  }
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(CopierTest, ACopyThatCannotBeWrittenIsAnError) {
  ASSERT_TRUE(fd);
  ASSERT_TRUE(seal_copy(fd->get()));
  Copier copier{Domain{xen, kDom}, fd->get(), kNbPages};
  ASSERT_TRUE(copier.begin());
  const auto copied = copier.copy({});
  ASSERT_FALSE(copied);
  EXPECT_EQ(copied.error().errnum, EPERM);
  EXPECT_EQ(copied.error().what, "write a frozen domain's memory");
  EXPECT_EQ(xen.nb_mapped, 0U);
}

}  // namespace
}  // namespace snowfabric::xen::test
