// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/mac.hpp"

#include <set>

#include <gtest/gtest.h>

namespace snowfabric {
namespace {

TEST(MacAddr, PrintsWhatItParses) {
  const auto mac = parse_mac("02:dB:00:7f:A0:01");
  ASSERT_TRUE(mac);
  EXPECT_EQ(to_string(*mac), "02:db:00:7f:a0:01");
  EXPECT_EQ(mac->bytes[5], 1);
}

TEST(MacAddr, RejectsEveryOtherText) {
  for (const char* text :
       {"", "02", "02:db:00:00:00", "02:db:00:00:00:01:", "02:db:00:00:00:0g", "02-db-00-00-00-01",
        "02:db:00:00:00:001", " 2:db:00:00:00:01", "02db00000001     "})
    EXPECT_FALSE(parse_mac(text)) << '"' << text << '"';
}

TEST(GroupAddress, IsLocallyAdministeredMulticastAndNotBroadcast) {
  for (std::uint64_t id : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}}) {
    const MacAddr group = group_address(id);
    EXPECT_TRUE(group.is_multicast());
    EXPECT_EQ(group.bytes[0], 0x03);
    EXPECT_NE(group, kBroadcast);
  }
}

TEST(GroupAddress, StaysWhatTheWireFormatSays) {
  // the values of docs/wire-format.md: a change breaks running families
  EXPECT_EQ(to_string(group_address(1)), "03:e5:05:0b:10:1d");
  EXPECT_EQ(to_string(group_address(0x1122334455667788)), "03:e2:32:f6:83:1b");
}

TEST(GroupAddress, DiffersForEverySingleBitOfTheImageId) {
  std::set<std::string> groups{to_string(group_address(0))};
  for (unsigned bit = 0; bit < 64; ++bit)
    groups.insert(to_string(group_address(std::uint64_t{1} << bit)));
  EXPECT_EQ(groups.size(), 65U);
}

}  // namespace
}  // namespace snowfabric
