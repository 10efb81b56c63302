// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/endian.hpp"

#include <array>
#include <cstring>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

template <class T>
std::array<unsigned char, sizeof(T)> memory_of(const T& value) {
  std::array<unsigned char, sizeof(T)> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

TEST(BigEndian, LiesInMemoryMostSignificantByteFirst) {
  EXPECT_EQ(memory_of(Be16{std::uint16_t{0x0102}}), (std::array<unsigned char, 2>{1, 2}));
  EXPECT_EQ(memory_of(Be32{0x01020304U}), (std::array<unsigned char, 4>{1, 2, 3, 4}));
  EXPECT_EQ(memory_of(Be64{0x0102030405060708U}),
            (std::array<unsigned char, 8>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(BigEndian, GivesBackWhatWasStored) {
  EXPECT_EQ(Be16{std::uint16_t{0xfffe}}.host(), 0xfffe);
  EXPECT_EQ(Be32{0xfffefdfcU}.host(), 0xfffefdfcU);
  EXPECT_EQ(Be64{0xfffefdfcfbfaf9f8U}.host(), 0xfffefdfcfbfaf9f8U);
}

TEST(BigEndian, CanBeReadAtAnyAddress) {
  struct Odd {
    std::uint8_t pad;
    Be64 value;
  };
  static_assert(sizeof(Odd) == 9);
  const Odd odd{1, 0x1122334455667788U};
  EXPECT_EQ(odd.value.host(), 0x1122334455667788U);
}

}  // namespace
}  // namespace snowfabric
