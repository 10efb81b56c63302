// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/crc32c.hpp"

#include <array>
#include <cstring>
#include <string_view>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

std::uint32_t of(std::string_view text) { return crc32c(std::as_bytes(std::span{text})); }

// Source: RFC 3720 appendix B.4, and the check value of the CRC catalogue for "123456789".
TEST(Crc32c, MatchesThePublishedVectors) {
  std::array<std::byte, 32> bytes{};
  EXPECT_EQ(crc32c(bytes), 0x8a9136aaU);
  bytes.fill(std::byte{0xff});
  EXPECT_EQ(crc32c(bytes), 0x62a8ab43U);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(bytes), 0x46dd794eU);
  EXPECT_EQ(of("123456789"), 0xe3069283U);
  EXPECT_EQ(of(""), 0U);
}

TEST(Crc32c, SeesEverySingleFlippedBitOfAPage) {
  std::array<std::byte, 4096> page{};
  const std::uint32_t intact = crc32c(page);
  for (std::size_t bit = 0; bit < page.size() * 8; bit += 7) {  // every byte, every bit position
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(crc32c(page), intact) << "bit " << bit;
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace snowfabric
