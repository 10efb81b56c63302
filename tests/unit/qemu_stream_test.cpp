// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/qemu_stream.hpp"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <gmock/gmock.h>

#include "tests/unit/qemu_sample.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;

/// `good` with what follows `begin` in the stream.
Stream ram_of(const Stream& pages) {
  return header().add(config()).add(ram_start()).add(part(pages));
}

TEST(QemuReader, PutsEachPageInItsPlaceWithTheLargestBlockFirst) {
  Reading reading;
  const auto state = reading.read(sample().bytes);
  ASSERT_TRUE(state.has_value()) << state.error().what;
  EXPECT_EQ(*state, sample_state());
  // A zero page is not written: its place reads as zeros before.
  EXPECT_EQ(reading.memory(), "0.2ar");
}

TEST(QemuReader, TakesTheStreamHoweverItIsCut) {
  for (const std::size_t piece : {1U, 7U, 4096U, 1U << 20U}) {
    Reading reading{.piece = piece};
    EXPECT_EQ(reading.read(sample().bytes), sample_state()) << piece;
    EXPECT_EQ(reading.memory(), "0.2ar") << piece;
  }
}

TEST(QemuReader, APageThatComesAgainOverwrites) {
  Reading reading;
  const Stream more = Stream{}
                          .u64(0 * kPc | kZero)
                          .name("pc.ram")
                          .u8(0)
                          .u64(1 * kPc | kFull | kContinue)
                          .fill('1', kPc);
  const auto pages = acpi_page().add(ram_pages()).add(rom_page()).add(more);
  ASSERT_EQ(reading.read(sample(pages).bytes), sample_state());
  EXPECT_EQ(reading.memory(), std::string("\0"
                                          "12ar",
                                          5));
}

TEST(QemuReader, TheLastBlockNamedHoldsInTheNextSection) {
  Reading reading;
  const Stream rest = Stream{}.u64(2 * kPc | kFull | kContinue).fill('2', kPc);
  const Stream start = Stream{}
                           .u64(0 * kPc | kFull)
                           .name("pc.ram")
                           .fill('0', kPc)
                           .u64(1 * kPc | kZero | kContinue)
                           .u8(0);
  const auto stream =
      ram_of(acpi_page().add(rom_page()).add(start)).add(part(rest)).add(devices()).add(eof());
  EXPECT_EQ(reading.read(stream.bytes), sample_state());
  EXPECT_EQ(reading.memory(), "0.2ar");
}

TEST(QemuReader, NeedsNoDescriptionBehindTheDevices) {
  const Stream pages = acpi_page().add(ram_pages()).add(rom_page());
  EXPECT_EQ(Reading{}.read(ram_of(pages).add(devices()).add(eof()).bytes), sample_state());
}

TEST(QemuReader, SharedBlocksCarryNoPagesAndTheCapabilityStaysBehind) {
  Reading reading{.left_out = "pc.ram"};
  const auto stream = header()
                          .add(config())
                          .add(capability("x-ignore-shared"))
                          .add(ram_start_ignoring_shared())
                          .add(part(acpi_page().add(rom_page())))
                          .add(devices())
                          .add(eof())
                          .add(description());
  const auto state = reading.read(stream.bytes);
  ASSERT_TRUE(state.has_value()) << state.error().what;
  EXPECT_EQ(*state, sample_state());
  EXPECT_EQ(reading.memory(), "...ar");
}

TEST(QemuReader, KeepsTheConfigurationThatACloneMustHave) {
  const Stream uuid = Stream{}.u8(5).name("configuration/uuid").u32(1).fill('u', 16);
  const Stream bits = Stream{}.u8(5).name("configuration/target-page-bits").u32(1).u32(12);
  const Stream pages = acpi_page().add(ram_pages()).add(rom_page());
  const auto stream = header()
                          .add(config())
                          .add(bits)
                          .add(uuid)
                          .add(ram_start())
                          .add(part(pages))
                          .add(devices())
                          .add(eof());
  const auto state = Reading{}.read(stream.bytes);
  ASSERT_TRUE(state.has_value()) << state.error().what;
  EXPECT_EQ(state->config, config().add(bits).add(uuid).vector());
}

TEST(QemuReader, EveryTruncationIsRefusedWithItsByte) {
  const Stream whole = short_sample();
  const std::size_t described = whole.bytes.size() - description().bytes.size();
  for (std::size_t n = 0; n < whole.bytes.size(); ++n) {
    const auto state = Reading{.piece = 1U << 20U}.read(std::string_view{whole.bytes}.substr(0, n));
    if (n == described) {  // a whole stream without a description
      EXPECT_EQ(state, sample_state());
      continue;
    }
    ASSERT_FALSE(state.has_value()) << n;
    ASSERT_EQ(state.error().errnum, EBADMSG) << n;
    ASSERT_THAT(state.error().what, HasSubstr("byte " + std::to_string(n) + ": truncated"));
  }
}

TEST(QemuReader, NoBitFlipDoesHarm) {
  const Stream whole = short_sample();
  for (std::size_t at = 0; at < whole.bytes.size(); ++at) {
    if (whole.bytes[at] == '2' && at % 64 != 0) continue;  // bytes of the page
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole.bytes;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      Reading reading{.piece = 1U << 20U};
      const auto state = reading.read(flipped);
      if (!state) {
        EXPECT_GT(state.error().errnum, 0);
      } else {
        EXPECT_EQ(qemu::nb_pages(state->blocks), kNbSamplePages) << at;
      }
    }
  }
}

TEST(QemuReader, NamesTheBlockWhosePagesDidNotCome) {
  const auto stream =
      sample(acpi_page().add(rom_page()).add(Stream{}.u64(kFull).name("pc.ram").fill('0', kPc)));
  const Error error = Reading{}.error_of(stream);
  EXPECT_EQ(error.errnum, EBADMSG);
  EXPECT_THAT(error.what, HasSubstr("2 of 3 pages of RAM block pc.ram did not come"));
}

struct Refusal {
  const char* text;  // of the error
  int errnum;
  Stream stream;
};

void expect_refused(const std::vector<Refusal>& refusals) {
  for (const Refusal& r : refusals) {
    const Error error = Reading{.left_out = "acpi"}.error_of(r.stream);
    EXPECT_EQ(error.errnum, r.errnum) << r.text << ": " << error.what;
    EXPECT_THAT(error.what, HasSubstr(r.text));
    EXPECT_THAT(error.what, HasSubstr("migration stream, byte "));
  }
}

TEST(QemuReader, RefusesWhatIsBeforeTheRam) {
  const Stream start = header().add(config());
  expect_refused({
      {"magic is another", EBADMSG, Stream{}.u32(0x5145564e).u32(3).add(config())},
      {"version 2, only 3", ENOTSUP, Stream{}.u32(0x5145564d).u32(2).add(config())},
      {"no configuration", ENOTSUP, header().add(ram_start())},
      {"machine name of 256", EBADMSG, header().u8(7).u32(256).fill('m', 256)},
      {"machine name of 4294967295", EBADMSG, header().u8(7).u32(0xffffffff)},
      {"subsection \"future\"", ENOTSUP, Stream{start}.u8(5).name("future").u32(1)},
      {"capability mapped-ram", ENOTSUP, Stream{start}.add(capability("mapped-ram"))},
      {"unknown type 9", EBADMSG, Stream{start}.u8(9)},
      {"unknown type 0", EBADMSG, Stream{start}.u8(0)},
      {"postcopy-ram, return-path", ENOTSUP, Stream{start}.u8(8).u16(1).u16(0)},
      {"section 2 goes on", EBADMSG, Stream{start}.add(part(acpi_page()))},
      {"no ram section", EBADMSG, Stream{start}.add(devices())},
      {"section \"dirty-bitmap\"", ENOTSUP,
       Stream{start}.u8(1).u32(1).name("dirty-bitmap").u32(0).u32(1)},
      {"ram section 0 of version 5", ENOTSUP, Stream{start}.u8(1).u32(2).name("ram").u32(0).u32(5)},
      {"ram section 1 of version 4", ENOTSUP, Stream{start}.u8(1).u32(2).name("ram").u32(1).u32(4)},
  });
  Stream long_config = header().add(config());
  for (int i = 0; i < 200; ++i) long_config.u8(5).name("configuration/uuid").u32(1).fill('u', 16);
  expect_refused({{"configuration of more than 4096", EFBIG, long_config}});
}

TEST(QemuReader, RefusesBlocksThatAreNot) {
  const auto blocks = [](std::uint64_t total) {
    return header().add(config()).add(ram_begin(total));
  };
  Stream many = blocks(257 * kPc);
  for (int i = 0; i < 257; ++i) many.name("b" + std::to_string(i)).u64(kPc);
  Stream no_list = header().add(config()).u8(1).u32(2).name("ram").u32(0).u32(4);
  expect_refused({
      {"does not begin with its blocks", EBADMSG, no_list.u64(kEos)},
      {"does not begin with its blocks", EBADMSG, blocks(0)},
      {"65 pages of memory, at most 64", EFBIG, blocks(65 * kPc)},
      {"pages of memory, at most", EFBIG, blocks(~std::uint64_t{0xfff})},
      {"comes twice", EBADMSG, blocks(2 * kPc).name("a").u64(kPc).name("a").u64(kPc)},
      {"of 0 bytes", EBADMSG, blocks(kPc).name("a").u64(0)},
      {"of 4095 bytes", EBADMSG, blocks(kPc).name("a").u64(kPc - 1)},
      {"more than all blocks", EBADMSG, blocks(kPc).name("a").u64(2 * kPc)},
      {"is not text", EBADMSG, blocks(kPc).name("").u64(kPc)},
      {"is not text", EBADMSG, blocks(kPc).name("a\n").u64(kPc)},
      {"does not end with its footer", EBADMSG,
       blocks(kPc).name("a").u64(kPc).u64(kEos).u8(0x7e).u32(kRamId + 1)},
      {"second section starts", EBADMSG, header().add(config()).add(ram_start()).add(ram_start())},
  });
  Reading roomy{.max_pages = 1000};
  EXPECT_EQ(roomy.error_of(many).errnum, EFBIG);
}

TEST(QemuReader, RefusesPagesThatAreNot) {
  expect_refused({
      {"names no block", EBADMSG, ram_of(Stream{}.u64(kFull | kContinue))},
      {"was not listed", EBADMSG, ram_of(Stream{}.u64(kFull).name("pc.bios"))},
      {"at 0x3000 of RAM block pc.ram, which has 0x3000", EBADMSG,
       ram_of(Stream{}.u64(3 * kPc | kFull).name("pc.ram"))},
      {"at 0xfffffffffffff000", EBADMSG,
       ram_of(Stream{}.u64(~std::uint64_t{0xfff} | kFull).name("pc.ram"))},
      {"acpi, whose pages are not expected", EBADMSG, ram_of(acpi_page())},
      {"flags 0xa", EBADMSG, ram_of(Stream{}.u64(kFull | kZero).name("pc.ram"))},
      {"flags 0x0", EBADMSG, ram_of(Stream{}.u64(0).name("pc.ram"))},
      {"flags 0x4", EBADMSG, ram_of(Stream{}.u64(kMemSize))},
      {"flags 0x10", EBADMSG, ram_of(Stream{}.u64(kPc | kEos))},
      {"xbzrle", ENOTSUP, ram_of(Stream{}.u64(0x40).name("pc.ram"))},
      {"compress", ENOTSUP, ram_of(Stream{}.u64(0x100).name("pc.ram"))},
      {"rdma", ENOTSUP, ram_of(Stream{}.u64(0x80))},
  });
}

TEST(QemuReader, RefusesDevicesThatDoNotEndAsSections) {
  const Stream ram = ram_of(acpi_page().add(ram_pages()).add(rom_page()));
  const auto refused = [&ram](const Stream& devices) {
    const Error error = Reading{}.error_of(Stream{ram}.add(devices));
    EXPECT_THAT(error.what, HasSubstr("the device state does not end"));
    return error.errnum;
  };
  EXPECT_EQ(refused(Stream{}.u8(4).fill('\0', 100)), EBADMSG);
  EXPECT_EQ(refused(devices().u8(0x7e).u32(8).u8(0)), EBADMSG) << "a footer of no section";
  EXPECT_EQ(refused(devices().add(eof()).u8(6).u32(17).raw(R"({"page_size":40})")), EBADMSG);
  EXPECT_EQ(refused(devices().add(eof()).add(description()).raw("more")), EBADMSG);
}

TEST(QemuReader, BoundsTheDevices) {
  const Stream ram = ram_of(acpi_page().add(ram_pages()).add(rom_page())).u8(4);
  Reading reading{.piece = 1U << 20U};
  const Error error = reading.error_of(Stream{ram}.fill('d', qemu::kMaxDeviceBytes));
  EXPECT_EQ(error.errnum, EFBIG);
  EXPECT_THAT(error.what, HasSubstr("more than 67108864 bytes of device state"));
}

TEST(QemuReader, HandsOnTheErrorsOfSourceAndPlace) {
  const auto no_place = [](std::span<const RamBlock>) -> Result<std::vector<std::span<std::byte>>> {
    return fail(ENOMEM, "no place");
  };
  const auto broken = [](std::span<std::byte>) -> Result<std::size_t> {
    return fail(ECONNRESET, "gone");
  };
  EXPECT_EQ(qemu::read_stream(broken, no_place, 64).error().what, "gone");
  const auto all = sample().vector();
  const auto source = [rest = std::span{all}](std::span<std::byte> out) mutable {
    const std::size_t n = std::min(out.size(), rest.size());
    std::ranges::copy(rest.first(n), out.begin());
    rest = rest.subspan(n);
    return Result<std::size_t>{n};
  };
  EXPECT_EQ(qemu::read_stream(source, no_place, 64).error().errnum, ENOMEM);
  const auto too_few = [](std::span<const RamBlock>) {
    return Result<std::vector<std::span<std::byte>>>{std::vector<std::span<std::byte>>(2)};
  };
  EXPECT_THAT(qemu::read_stream(source, too_few, 64).error().what, HasSubstr("2 places for 3"));
  std::byte small{};
  const auto too_small = [&small](std::span<const RamBlock> blocks) {
    return Result<std::vector<std::span<std::byte>>>{
        std::vector(blocks.size(), std::span{&small, 1})};
  };
  EXPECT_EQ(qemu::read_stream(source, too_small, 64).error().errnum, EINVAL);
}

TEST(QemuReader, TakesTheFuzzersSeeds) {
  const std::filesystem::path folder{SNOWFABRIC_SOURCE_DIR "/tests/fuzz/corpus/qemu_stream"};
  for (const std::string name : {"snapshot", "ignore_shared", "full_page"}) {
    std::ifstream file{folder / name, std::ios::binary};
    const std::string seed{std::istreambuf_iterator<char>{file}, {}};
    ASSERT_FALSE(seed.empty()) << name;
    Reading reading{.left_out = name == "ignore_shared" ? "pc.ram" : ""};
    const auto state = reading.read(seed.substr(1));
    EXPECT_TRUE(state.has_value()) << name << ": " << state.error().what;
  }
}

}  // namespace
}  // namespace snowfabric::testing
