// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/hex.hpp"

#include <array>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

TEST(Hex, BytesAndTheirDigitsAreTheSame) {
  constexpr std::array kBytes{std::byte{0x00}, std::byte{0x0f}, std::byte{0xa5}};
  EXPECT_EQ(to_hex(kBytes), "000fa5");
  for (const char* text : {"000fa5", "000FA5"}) {
    std::array<std::byte, 3> bytes{};
    EXPECT_TRUE(from_hex(text, bytes));
    EXPECT_EQ(bytes, kBytes);
  }
}

TEST(Hex, OtherTextIsNone) {
  std::array<std::byte, 3> bytes{};
  for (const char* text :
       {"", "000fa", "000fa5a", "000fa5a5", "0x0fa5", "-1-1-1", "00 fa5", "00gfa5"})
    EXPECT_FALSE(from_hex(text, bytes)) << text;
}

}  // namespace
}  // namespace snowfabric
