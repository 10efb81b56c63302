// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/xen_state.hpp"

#include <cerrno>
#include <functional>

#include <gmock/gmock.h>

#include "tests/unit/descriptor_sample.hpp"

namespace snowfabric::xen {
namespace {

using snowfabric::test::bytes_of;
using testing::HasSubstr;

DomainState sample() {
  return {.context = bytes_of("HVM save record"),
          .tsc = {.mode = 2, .elapsed_ns = 0x1'2345'6789, .khz = 2'500'000, .incarnation = 9},
          .nb_vcpus = 4,
          .eager = {Gfn{3}, Gfn{4}, Gfn{99}},
          .target_kib = 262'144,
          .bitmap = PageRange{Gfn{60}, 2}};
}
Descriptor described(const DomainState& state) {
  Descriptor descriptor = snowfabric::test::sample_descriptor();  // of 100 pages
  descriptor.sections = sections_of(state);
  return descriptor;
}

TEST(XenState, ReadsBackFromTheFileAsItWasWritten) {
  const auto file = encode(described(sample()));
  ASSERT_TRUE(file) << file.error().what;
  const auto state = state_of(decode(*file).value());
  ASSERT_TRUE(state) << state.error().what;
  EXPECT_EQ(*state, sample());
}

TEST(XenState, OfAQemuParentThereIsNone) {
  const auto state = state_of(snowfabric::test::sample_descriptor());
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().errnum, EINVAL);
}

struct Wrong {
  std::function<void(Descriptor&)> spoil;
  const char* what;
};
class XenStateError : public testing::TestWithParam<Wrong> {};

TEST_P(XenStateError, IsRefused) {
  Descriptor descriptor = described(sample());
  GetParam().spoil(descriptor);
  const auto state = state_of(descriptor);
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().errnum, EBADMSG);
  EXPECT_THAT(state.error().what, HasSubstr(GetParam().what));
}

Wrong with(const char* what, const std::function<void(DomainState&)>& spoil) {
  return {[spoil](Descriptor& descriptor) {
            DomainState state = sample();
            spoil(state);
            descriptor.sections = sections_of(state);
          },
          what};
}

INSTANTIATE_TEST_SUITE_P(
    EveryBound, XenStateError,
    testing::Values(
        with("a record of 0 bytes", [](DomainState& s) { s.context.clear(); }),
        with("0 vCPUs", [](DomainState& s) { s.nb_vcpus = 0; }),
        with("129 vCPUs", [](DomainState& s) { s.nb_vcpus = 129; }),
        with("do not ascend", [](DomainState& s) { s.eager = {Gfn{4}, Gfn{4}}; }),
        with("0x64 is outside", [](DomainState& s) { s.eager = {Gfn{100}}; }),
        with("its bitmap ends at page 0x65",
             [](DomainState& s) { s.bitmap = PageRange{Gfn{99}, 2}; }),
        with("65537 eager pages", [](DomainState& s) { s.eager.assign(65'537, Gfn{1}); }),
        Wrong{[](Descriptor& d) { d.sections[1].bytes.assign(5, std::byte{0xff}); }, "malformed"}));

}  // namespace
}  // namespace snowfabric::xen
