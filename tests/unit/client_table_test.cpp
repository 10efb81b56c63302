// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/client_table.hpp"

#include <set>

#include <gtest/gtest.h>

#include "fabric/base/prng.hpp"

namespace snowfabric {
namespace {

const FlowConfig kFlow;

Client client(std::uint64_t id) { return {.id = id, .flow = FlowEstimate{kFlow, 1e6}}; }

TEST(ClientTable, FindsMembersByIdAndNobodyElse) {
  ClientTable table{4};
  const auto ten = table.insert(client(10));
  const auto twenty = table.insert(client(20));
  EXPECT_EQ(table.find(10), ten);
  EXPECT_EQ(table.find(20), twenty);
  EXPECT_EQ(table.find(30), ClientTable::kNone);
  EXPECT_EQ(table[twenty].id, 20U);
  EXPECT_FALSE(table.valid(ClientTable::kNone));
}

TEST(ClientTable, TheLastMemberTakesThePlaceOfAnErasedOneAndIsStillFound) {
  ClientTable table{4};
  const auto first = table.insert(client(10));
  table.insert(client(20));
  table.insert(client(30));
  table.erase(first);
  EXPECT_EQ(table.size(), 2U);
  EXPECT_EQ(table.find(10), ClientTable::kNone);
  EXPECT_EQ(table.find(30), first);
  EXPECT_EQ(table[table.find(20)].id, 20U);
  EXPECT_FALSE(table.valid(2));
}

TEST(ClientTable, ManyThatComeAndGoInAnyOrderAreFound) {
  ClientTable table{64};
  std::set<std::uint64_t> members;
  Prng prng{1};
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t id = prng.next() % 100;
    const auto index = table.find(id);
    ASSERT_EQ(index != ClientTable::kNone, members.contains(id));
    if (index != ClientTable::kNone) {
      ASSERT_EQ(table[index].id, id);
      table.erase(index);
      members.erase(id);
    } else if (!table.full()) {
      ASSERT_EQ(table.insert(client(id)), members.size());
      members.insert(id);
    }
  }
}

TEST(ClientTable, TheLastMemberItselfCanBeErased) {
  ClientTable table{2};
  table.erase(table.insert(client(10)));
  EXPECT_EQ(table.size(), 0U);
  EXPECT_EQ(table.find(10), ClientTable::kNone);
}

TEST(ClientTable, IsFullAtItsCapacityAndAgainFreeAfterAnErase) {
  ClientTable table{2};
  table.insert(client(1));
  EXPECT_FALSE(table.full());
  table.insert(client(2));
  EXPECT_TRUE(table.full());
  table.erase(table.find(1));
  EXPECT_FALSE(table.full());
}

TEST(ClientTable, AnIndexNeverReachesTheMarkForNobody) {
  const ClientTable table{1'000'000};
  EXPECT_FALSE(table.full());  // the capacity was cut to what an index can name
  ClientTable cut{1'000'000};
  for (std::uint64_t id = 1; !cut.full(); ++id) cut.insert({.id = id, .flow = client(1).flow});
  EXPECT_EQ(cut.size(), std::size_t{ClientTable::kNone});
  EXPECT_TRUE(cut.valid(ClientTable::kNone - 1));
  EXPECT_FALSE(cut.valid(ClientTable::kNone));
}

}  // namespace
}  // namespace snowfabric
