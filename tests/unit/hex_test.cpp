// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/hex.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

TEST(Hex, BytesAndTheirDigitsAreTheSame) {
  constexpr std::array kBytes{std::byte{0x00}, std::byte{0x0f}, std::byte{0xa5}};
  EXPECT_EQ(to_hex(kBytes), "000fa5");
  EXPECT_EQ(from_hex<3>("000fa5"), kBytes);
  EXPECT_EQ(from_hex<3>("000FA5"), kBytes);
}

TEST(Hex, OtherTextIsNone) {
  for (const char* text :
       {"", "000fa", "000fa5a", "000fa5a5", "0x0fa5", "-1-1-1", "00 fa5", "00gfa5"})
    EXPECT_FALSE(from_hex<3>(text)) << text;
}

}  // namespace
}  // namespace snowfabric
