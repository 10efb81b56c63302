// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/telemetry_params.hpp"

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

TEST(TelemetryParams, AGuestIsNamedByADecimalNumber) {
  EXPECT_EQ(guest_id_of("1"), 1U);
  EXPECT_EQ(guest_id_of("4294967295"), 4294967295U);
  for (const char* text : {"", " 1", "1 ", "+1", "-1", "0x1", "1,2"})
    EXPECT_EQ(guest_id_of(text), std::nullopt) << text;
}

TEST(TelemetryParams, ANumberBeyondAllGuestsIsNotTheGuestOfItsLowBits) {
  EXPECT_EQ(guest_id_of("4294967297"), std::nullopt);
  EXPECT_EQ(guest_id_of("18446744073709551617"), std::nullopt);
}

TEST(TelemetryParams, AnImageIsNamedByItsSixteenDigits) {
  EXPECT_EQ(image_id_of("00000000000000af"), 0xafU);
  EXPECT_EQ(image_id_of("ffffffffffffffff"), ~std::uint64_t{0});
  for (const char* text : {"", "af", "00000000000000AF", "0x000000000000af", "-000000000000001",
                           "000000000000000af", "00000000000000a "})
    EXPECT_EQ(image_id_of(text), std::nullopt) << text;
}

}  // namespace
}  // namespace snowfabric
