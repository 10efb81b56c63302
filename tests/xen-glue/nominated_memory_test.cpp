// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/nominated_memory.hpp"

#include <array>
#include <chrono>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{6};
constexpr std::uint64_t kNbPages = 128;

class NominatedMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    domain.nb_pauses = 0;
    domain.referred = {Gfn{3}};
    for (std::uint64_t i = 0; i < kNbPages; ++i) domain.page(Gfn{i})[5] = std::byte{7};
    auto ram = NominatedRam::take(Domain{xen, kDom}, kNbPages, {});
    ASSERT_TRUE(ram) << ram.error().what;
    auto served = NominatedMemory::serve(
        std::move(calls), std::move(*ram), [this] { ++nb_given_back; }, std::nullopt);
    ASSERT_TRUE(served) << served.error().what;
    memory = std::move(*served);
  }
  [[nodiscard]] int byte_of(std::uint64_t page) const {
    std::array<std::byte, 1> byte{};
    memory->pages().copy(Gfn{page}, 5, byte);
    return std::to_integer<int>(byte[0]);
  }
  /// One is copied as it is taken.
  [[nodiscard]] std::uint64_t nb_touched() const { return memory->pages().nb_copies() - 1; }
  void wait_for_copies(std::uint64_t nb) const {
    for (int i = 0; i < 1000 && nb_touched() < nb; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    ASSERT_EQ(nb_touched(), nb);
  }

  unsigned nb_given_back = 0;
  std::shared_ptr<FakeXen> calls = std::make_shared<FakeXen>();
  FakeXen& xen = *calls;
  FakeDomain& domain = xen.add(kDom, kNbPages, 2);
  std::unique_ptr<NominatedMemory> memory;
};

TEST_F(NominatedMemoryTest, APageIsAsItWasWhateverTheDomainWritesOnceItMay) {
  EXPECT_FALSE(domain.touch(0, Gfn{9}));
  wait_for_copies(1);
  for (int i = 0; i < 1000 && domain.vcpu_waits(0); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  EXPECT_FALSE(domain.vcpu_waits(0));
  domain.page(Gfn{9})[5] = std::byte{1};
  EXPECT_EQ(byte_of(9), 7);
  EXPECT_EQ(byte_of(10), 7);
}

TEST_F(NominatedMemoryTest, WhatXenDidNotNominateWasCopiedAtOnce) {
  domain.page(Gfn{3})[5] = std::byte{1};  // the guest never had to wait
  EXPECT_EQ(byte_of(3), 7);
  EXPECT_EQ(nb_touched(), 0U);
}

TEST_F(NominatedMemoryTest, APageThatTheGuestGaveBackIsStillServed) {
  domain.drop(Gfn{40});
  wait_for_copies(1);
  EXPECT_EQ(byte_of(40), 7);
}

TEST_F(NominatedMemoryTest, ItsEndIsToldOnceTheDomainHasEverything) {
  EXPECT_FALSE(domain.touch(0, Gfn{9}));
  wait_for_copies(1);
  EXPECT_EQ(nb_given_back, 0U);
  memory.reset();
  EXPECT_EQ(nb_given_back, 1U);
}

TEST_F(NominatedMemoryTest, OfADomainThatIsGoneTheImageStays) {
  xen.remove(kDom);
  EXPECT_EQ(byte_of(9), 7);
  memory.reset();
  EXPECT_EQ(nb_given_back, 1U);
}

TEST_F(NominatedMemoryTest, IfItFailsItIsForTheGuardToGiveBack) {
  xen.fail(Call::kFree, EIO, 20);
  memory.reset();
  EXPECT_EQ(nb_given_back, 0U);
}

}  // namespace
}  // namespace snowfabric::xen::test
