// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/guest_ram.hpp"

#include <gmock/gmock.h>

#include "tests/unit/fake_qemu.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(GuestRam, RamOfTheMemoryViewIsFoundOnBothSidesOfTheHole) {
  EXPECT_THAT(
      parse_flat_view(
          "FlatView #0\r\n"
          " AS \"memory\", root: system\r\n"
          " AS \"cpu-memory-0\", root: system\r\n"
          " Root memory region: system\r\n"
          "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\r\n"
          "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom\r\n"
          "  0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000\r\n"
          "  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\r\n"
          "  0000000100000000-000000017fffffff (prio -1, ram): pc.ram @00000000c0000000 KVM\r\n"
          "\r\n"
          "FlatView #1\r\n"
          " AS \"cpu-smm-0\", root: memory\r\n"
          "  0000000000000000-00000000000bffff (prio 0, ram): smram\r\n"),
      ElementsAre(RamSpan{{0, 0xc0}, "pc.ram", 0}, RamSpan{{0x100, 0xbff00}, "pc.ram", 0x100},
                  RamSpan{{0x100000, 0x80000}, "pc.ram", 0xc0000}));
}

TEST(GuestRam, WhatIsNoWholePageOfRamIsPassedOver) {
  const std::string view = "FlatView #0\n AS \"memory\", root: system\n";
  for (const char* line :
       {"  0000000000000800-0000000000001fff (prio 0, ram): pc.ram",
        "  0000000000000000-0000000000000ffe (prio 0, ram): pc.ram",
        "  0000000000001000-0000000000000fff (prio 0, ram): pc.ram",
        "  0000000000009000-0000000000000fff (prio 0, ram): pc.ram",
        "  0000000000000000-0000000000000fff (prio 0, ram): pc.ram @0000000000000001",
        "  0000000000000000-0000000000000fff (prio 0, romd): pc.ram",
        "  000000000000-000000000fff (prio 0, ram): pc.ram",
        "  0000000000000000-0000000000000fff (prio 0, ram):", "No flat view"})
    EXPECT_THAT(parse_flat_view(view + line), IsEmpty()) << line;
  EXPECT_THAT(parse_flat_view(""), IsEmpty());
}

TEST(GuestRam, AnEndlessLineIsPassedOver) {
  const std::string endless(std::size_t{1} << 22U, 'a');
  EXPECT_THAT(parse_flat_view("FlatView #0\n AS \"memory\", root: system\n"
                              "  0000000000000000-0000000000000fff (prio 0, ram): " +
                              endless + "\n  0000000000001000-0000000000001fff (prio 0, ram): b"),
              ElementsAre(RamSpan{{1, 1}, "b", 0}));
}

TEST(GuestRam, QemuIsAskedForItAndHasToHaveSome) {
  const std::string view = R"("FlatView #0\r\n AS \"memory\", root: system\r\n)"
                           R"(  0000000000000000-0000000000000fff (prio 0, ram): pc.ram\r\n")";
  EXPECT_THAT(asked_of_qemu({{"info mtree -f", view}}, ask_ram_spans).value(),
              ElementsAre(RamSpan{{0, 1}, "pc.ram", 0}));
  for (const char* nothing : {R"("FlatView #0\r\n")", "[]", "{}"})
    EXPECT_EQ(asked_of_qemu({{"info mtree -f", nothing}}, ask_ram_spans).error().errnum, EPROTO)
        << nothing;
  EXPECT_THAT(asked_of_qemu({{"info mtree -f", "!no monitor"}}, ask_ram_spans).error().what,
              HasSubstr("no monitor"));
}

}  // namespace
}  // namespace snowfabric::testing
