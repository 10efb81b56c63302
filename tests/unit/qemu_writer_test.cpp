// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>

#include <gmock/gmock.h>

#include "descriptor/qemu_stream.hpp"
#include "tests/unit/qemu_sample.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

/// The sample's blocks in the image's order.
Stream image_ram_start() {
  return ram_begin(kNbSamplePages * kPc)
      .name("pc.ram")
      .u64(3 * kPc)
      .name("acpi")
      .u64(kPc)
      .name("pc.rom")
      .u64(kPc)
      .add(footer());
}

Stream command(std::uint64_t number, const Stream& data = {}) {
  return Stream{}.u8(8).u16(number).u16(data.bytes.size()).add(data);
}

Stream before_pages() {
  return header()
      .add(config())
      .add(command(1))
      .add(command(2, Stream{}.u32(1)))
      .add(command(3, Stream{}.u64(4096).u64(4096)))
      .add(image_ram_start())
      .add(command(6, Stream{}.u8(0).name("pc.ram").u8(0).u64(0).u64(4096)));
}

Stream package() {
  const Stream inner = command(4).add(devices()).add(command(2, Stream{}.u32(3))).add(command(5));
  return command(7, Stream{}.u32(inner.bytes.size())).add(inner);
}

/// Page contents by number; pages of '\0' are zero pages.
struct Memory {
  std::string page;
  std::span<const std::byte> operator()(Gfn gfn) {
    const char c = sample_memory()[gfn.value];
    page.assign(c == '\0' ? 0 : kPageSize, c);
    return std::as_bytes(std::span{page});
  }
};

TEST(QemuWriter, ThePreambleIsWhatQemuNeedsInItsOrder) {
  const auto preamble = qemu::postcopy_preamble(sample_state());
  ASSERT_TRUE(preamble.has_value()) << preamble.error().what;
  EXPECT_EQ(*preamble, before_pages().add(package()).u8(2).u32(kRamId).vector());
}

TEST(QemuWriter, VitalPagesComeBetweenTheDiscardAndThePackage) {
  const std::vector<Gfn> vital{{2}, {0}, {1}, {4}};
  const auto preamble = qemu::postcopy_preamble(sample_state(), vital, Memory{});
  ASSERT_TRUE(preamble.has_value()) << preamble.error().what;
  const Stream pages = Stream{}
                           .u64(2 * kPc | kFull)
                           .name("pc.ram")
                           .fill('2', kPc)
                           .u64(kFull | kContinue)
                           .fill('0', kPc)
                           .u64(kPc | kZero | kContinue)
                           .u8(0)
                           .u64(kFull)
                           .name("pc.rom")
                           .fill('r', kPc);
  EXPECT_EQ(*preamble, before_pages().add(part(pages)).add(package()).u8(2).u32(kRamId).vector());
}

TEST(QemuWriter, RefusesACloneWithoutBlocksAndVitalPagesThatAreNone) {
  const auto state = sample_state();
  EXPECT_EQ(qemu::postcopy_preamble({}).error().errnum, EINVAL);
  const std::vector<Gfn> outside{{kNbSamplePages}};
  const auto zero = [](Gfn) { return std::span<const std::byte>{}; };
  const auto refused = qemu::postcopy_preamble(state, outside, zero);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().errnum, EINVAL);
  EXPECT_THAT(refused.error().what, HasSubstr("vital page 5"));
  const Bytes half(kPageSize / 2);
  const std::vector<Gfn> first{{0}};
  const auto short_page = [&half](Gfn) { return std::span{half}; };
  EXPECT_EQ(qemu::postcopy_preamble(state, first, short_page).error().errnum, EINVAL);
}

TEST(QemuWriter, TheEndClosesTheOpenSection) {
  const Stream end = footer().u8(3).u32(kRamId).add(footer()).add(eof());
  EXPECT_EQ(qemu::postcopy_end(sample_state()), end.vector());
}

TEST(QemuWriter, RecoveryAsksForEachBlockThenResumes) {
  const auto state = sample_state();
  const Stream ask = command(10, Stream{}.name("pc.ram"))
                         .add(command(10, Stream{}.name("acpi")))
                         .add(command(10, Stream{}.name("pc.rom")));
  EXPECT_EQ(qemu::ask_received(state), ask.vector());
  EXPECT_EQ(qemu::postcopy_resume(state), command(9).u8(2).u32(kRamId).vector());
}

TEST(PageWriter, NamesABlockOnceUntilReset) {
  const auto state = sample_state();
  qemu::PageWriter writer{state.blocks};
  Memory memory;
  Bytes out;
  for (const std::uint64_t page : {0U, 2U, 3U, 1U})
    ASSERT_TRUE(writer.append(out, Gfn{page}, memory(Gfn{page})));
  writer.reset();
  ASSERT_TRUE(writer.append(out, Gfn{1}, {}));
  const Stream expected = Stream{}
                              .u64(kFull)
                              .name("pc.ram")
                              .fill('0', kPc)
                              .u64(2 * kPc | kFull | kContinue)
                              .fill('2', kPc)
                              .u64(kFull)
                              .name("acpi")
                              .fill('a', kPc)
                              .u64(kPc | kZero)
                              .name("pc.ram")
                              .u8(0)
                              .u64(kPc | kZero)
                              .name("pc.ram")
                              .u8(0);
  EXPECT_EQ(out, expected.vector());
}

TEST(PageWriter, KnowsNoPageOutsideOfTheBlocks) {
  std::vector<RamBlock> blocks{{"low", 2, 2, 2 * kPc}, {"high", 6, 1, kPc}};
  qemu::PageWriter writer{blocks};
  Bytes out;
  for (const std::uint64_t page : {0ULL, 1ULL, 4ULL, 5ULL, 7ULL, ~0ULL})
    EXPECT_FALSE(writer.append(out, Gfn{page}, {})) << page;
  EXPECT_TRUE(out.empty());
  EXPECT_TRUE(writer.append(out, Gfn{6}, {}));
  EXPECT_TRUE(writer.append(out, Gfn{3}, {}));
  blocks[0].name.assign(300, 'n');  // no stream can name it
  writer.reset();
  EXPECT_FALSE(writer.append(out, Gfn{3}, {}));
}

TEST(PageWriter, TheLongestHeaderFits) {
  const std::vector<RamBlock> blocks{{std::string(kMaxNameBytes, 'n'), 0, 1, kPc}};
  qemu::PageWriter writer{blocks};
  std::array<std::byte, qemu::kMaxPageHeaderBytes> out{};
  EXPECT_EQ(writer.header(out, Gfn{0}, true), out.size());
}

TEST(QemuWriter, ThePrecopyStreamCarriesAllBlocksButOne) {
  const auto state = sample_state();
  for (std::size_t left_out = 0; left_out < state.blocks.size(); ++left_out) {
    const auto stream = qemu::precopy_stream(state, left_out, Memory{});
    ASSERT_TRUE(stream.has_value()) << stream.error().what;
    const std::string bytes{reinterpret_cast<const char*>(stream->data()), stream->size()};
    Reading reading{.left_out = state.blocks[left_out].name};
    EXPECT_EQ(reading.read(bytes), state) << left_out;
    const std::string expected[] = {"...ar", "0.2.r", "0.2a."};
    EXPECT_EQ(reading.memory(), expected[left_out]);
  }
  const auto stream = qemu::precopy_stream(state, 0, Memory{});
  const Stream pages =
      Stream{}.u64(kFull).name("acpi").fill('a', kPc).u64(kFull).name("pc.rom").fill('r', kPc);
  EXPECT_EQ(*stream, header()
                         .add(config())
                         .add(image_ram_start())
                         .u8(3)
                         .u32(kRamId)
                         .add(pages)
                         .add(footer())
                         .add(devices())
                         .add(eof())
                         .vector());
}

TEST(QemuWriter, RefusesToLeaveOutWhatIsNotThere) {
  const auto state = sample_state();
  EXPECT_EQ(qemu::precopy_stream(state, 3, Memory{}).error().errnum, EINVAL);
  const Bytes half(kPageSize / 2);
  const auto short_page = [&half](Gfn) { return std::span{half}; };
  const auto refused = qemu::precopy_stream(state, 0, short_page);
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().what, HasSubstr("page 3 of RAM block acpi: 2048 bytes"));
}

Descriptor descriptor_of(const qemu::State& state) {
  Descriptor descriptor;
  descriptor.blocks = state.blocks;
  descriptor.sections = qemu::to_sections(state);
  return descriptor;
}

TEST(QemuState, GoesIntoADescriptorAndBack) {
  const auto descriptor = descriptor_of(sample_state());
  ASSERT_EQ(descriptor.sections.size(), 3U);
  EXPECT_EQ(descriptor.sections[1].type, SectionType::kQemuRamHeader);
  EXPECT_EQ(descriptor.sections[1].bytes, image_ram_start().vector());
  EXPECT_EQ(qemu::state_of(descriptor), sample_state());
}

TEST(QemuState, IsNotInAnyDescriptor) {
  for (std::size_t i = 0; i < 3; ++i) {
    auto descriptor = descriptor_of(sample_state());
    descriptor.sections.erase(descriptor.sections.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(qemu::state_of(descriptor).error().errnum, EINVAL) << i;
  }
  auto other = descriptor_of(sample_state());
  other.blocks[0].used_bytes -= kPc;
  const auto refused = qemu::state_of(other);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().errnum, EINVAL);
  EXPECT_THAT(refused.error().what, HasSubstr("not those of its qemu-ram-header"));
}

TEST(QemuState, ARamHeaderThatIsNoneIsRefused) {
  const Bytes whole = image_ram_start().vector();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    auto descriptor = descriptor_of(sample_state());
    descriptor.sections[1].bytes.resize(n);
    const auto refused = qemu::state_of(descriptor);
    ASSERT_FALSE(refused.has_value()) << n;
    EXPECT_EQ(refused.error().errnum, EBADMSG) << n;
    EXPECT_THAT(refused.error().what, HasSubstr("qemu-ram-header: "));
  }
  auto with_page = descriptor_of(sample_state());
  const Stream blocks = ram_begin(kPc).name("a").u64(kPc).u64(kFull).name("a").fill('a', kPc);
  with_page.sections[1].bytes = blocks.vector();
  EXPECT_EQ(qemu::state_of(with_page).error().errnum, EBADMSG);
}

TEST(QemuState, AConfigurationOrDevicesThatAreCutShortAreRefused) {
  constexpr std::size_t kFirstDevice = 31;  // what ends with it may be all
  for (const std::size_t section : {0UZ, 2UZ}) {
    const std::size_t nb_bytes = descriptor_of(sample_state()).sections[section].bytes.size();
    for (std::size_t n = 0; n < nb_bytes; ++n) {
      if (section == 2 && n == kFirstDevice) continue;
      auto descriptor = descriptor_of(sample_state());
      descriptor.sections[section].bytes.resize(n);
      const auto refused = qemu::state_of(descriptor);
      ASSERT_FALSE(refused.has_value()) << section << ", " << n;
      EXPECT_THAT(refused.error().what, HasSubstr(section == 0 ? "qemu-config" : "qemu-devices"));
    }
  }
}

TEST(QemuState, AConfigurationWithSomethingBehindItIsRefused) {
  auto descriptor = descriptor_of(sample_state());
  const Bytes more = capability("x-ignore-shared").vector();
  descriptor.sections[0].bytes.insert(descriptor.sections[0].bytes.end(), more.begin(), more.end());
  EXPECT_EQ(qemu::state_of(descriptor).error().errnum, EBADMSG);
}

}  // namespace
}  // namespace snowfabric::testing
