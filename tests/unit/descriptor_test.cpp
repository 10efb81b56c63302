// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/descriptor.hpp"

#include <cerrno>
#include <functional>

#include <gmock/gmock.h>

#include "tests/unit/descriptor_sample.hpp"

namespace snowfabric {
namespace {

using namespace test;
using ::testing::HasSubstr;
using Bytes = SecretBytes;  // as encode() has them

TEST(Descriptor, ReadsBackAsItWasWritten) {
  const Descriptor written = sample_descriptor();
  const auto file = encode(written);
  ASSERT_TRUE(file.has_value()) << file.error().what;
  const auto read = decode(*file);
  ASSERT_TRUE(read.has_value()) << read.error().what;
  EXPECT_EQ(*read, written);
  EXPECT_EQ(encode(*read).value(), *file);
}

TEST(Descriptor, NeedsNoMoreThanIdentityAndGuestMemory) {
  Descriptor least;
  least.image_id = 1;
  least.group = group_address(1);
  least.spaces = {{0, 1}};
  EXPECT_EQ(decode(encode(least).value()).value(), least);
}

TEST(Descriptor, FindsASectionByItsType) {
  const Descriptor d = sample_descriptor();
  EXPECT_EQ(d.find(SectionType::kQemuDevices), &d.sections[1]);
  EXPECT_EQ(d.find(SectionType::kQemuRamHeader), nullptr);
}

TEST(Descriptor, TakesTheLargestValuesItsBoundsAllow) {
  Descriptor d = sample_descriptor();
  d.spaces = {{0, kMaxImagePages - 1}, {255, 1}};
  d.blocks = {
      {std::string(kMaxNameBytes, 'n'), 0, kMaxImagePages - 1, (kMaxImagePages - 1) * kPageSize}};
  d.machine_args = {std::string(kMaxMachineArgBytes - 1, 'x')};
  d.parent_name = std::string(kMaxNameBytes, 'n');
  d.epoch = ~0U;
  d.frozen_at_ns = ~0ULL;
  d.zero_pages = {{Gfn{0}, static_cast<std::uint32_t>(kMaxImagePages - 1)}};
  d.working_set = {{Gfn{kMaxImagePages - 2}, 1}, {Gfn{0}, 1}};
  EXPECT_EQ(decode(encode(d).value()).value(), d);
}

struct WriterCase {
  const char* says;  ///< in the error's text
  std::function<void(Descriptor&)> spoil;
  int errnum = EINVAL;
};

TEST(Descriptor, AGroupsKeyAndTheRootOfAHashTreeComeBack) {
  Descriptor d = sample_descriptor();
  for (int i = 0; i < 32; ++i) d.group_key.push_back(static_cast<std::byte>(200 + i));
  for (int i = 0; i < 32; ++i) d.hash_root.push_back(static_cast<std::byte>(i));
  EXPECT_EQ(decode(encode(d).value()), d);
}

TEST(Descriptor, TheWriterRefusesAFieldOutsideItsBoundsAndNamesIt) {
  constexpr SectionType kUnknown{77};
  const std::vector<WriterCase> cases{
      {"image_id: is 0", [](auto& d) { d.image_id = 0; }},
      {"group: 02:", [](auto& d) { d.group = d.server; }},
      {"server: 03:", [](auto& d) { d.server = d.group; }},
      {"group_key: 31 bytes", [](auto& d) { d.group_key.resize(31); }},
      {"hash_root: 33 bytes", [](auto& d) { d.hash_root.resize(33); }},
      {"spaces: the first", [](auto& d) { d.spaces.clear(); }},
      {"spaces: the first", [](auto& d) { d.spaces = {{1, 100}}; }},
      {"spaces: 17 entries", [](auto& d) { d.spaces.resize(kMaxSpaces + 1); }},
      {"spaces[1]: space 0", [](auto& d) { d.spaces[1].space = 0; }},
      {"spaces[1]: nb_pages is 0", [](auto& d) { d.spaces[1].nb_pages = 0; }},
      {"spaces[1]: nb_pages 4294967196", [](auto& d) { d.spaces[1].nb_pages = 4294967196; }},
      {"spaces[0]: nb_pages", [](auto& d) { d.spaces[0].nb_pages = ~0ULL; }},
      {"blocks: 1025 entries", [](auto& d) { d.blocks.resize(kMaxRamBlocks + 1); }},
      {"blocks[0]: name is empty", [](auto& d) { d.blocks[0].name = ""; }},
      {"blocks[1]: name: 256 bytes", [](auto& d) { d.blocks[1].name = std::string(256, 'n'); }},
      {"blocks[0]: name: control", [](auto& d) { d.blocks[0].name = "a\x1b[2J"; }},
      {"blocks[1]: name pc.ram: a block", [](auto& d) { d.blocks[1].name = "pc.ram"; }},
      {"blocks[0]: nb_pages is 0", [](auto& d) { d.blocks[0].nb_pages = 0; }},
      {"blocks[1]: first_page 63", [](auto& d) { d.blocks[1].first_page = 63; }},
      {"blocks[1]: pages [99, +2)", [](auto& d) { d.blocks[1].first_page = 99; }},
      {"blocks[1]: pages [1", [](auto& d) { d.blocks[1].first_page = ~0ULL; }},
      {"blocks[1]: pages [70", [](auto& d) { d.blocks[1].nb_pages = ~0ULL; }},
      {"blocks[1]: used_bytes 0", [](auto& d) { d.blocks[1].used_bytes = 0; }},
      {"blocks[1]: used_bytes 8193", [](auto& d) { d.blocks[1].used_bytes = 8193; }},
      {"sections: 65 entries", [](auto& d) { d.sections.resize(kMaxSections + 1); }},
      {"sections[0]: type is 0", [](auto& d) { d.sections[0].type = SectionType{}; }},
      {"sections[1]: a second", [](auto& d) { d.sections[1].type = d.sections[0].type; }},
      {"sections[0]: type 77", [](auto& d) { d.sections[0].type = kUnknown; }, ENOTSUP},
      {"machine_args: 1025", [](auto& d) { d.machine_args.resize(kMaxMachineArgs + 1); }},
      {"machine_args[2]: has a NUL", [](auto& d) { d.machine_args[2] = std::string("a\0b", 3); }},
      {"machine_args[3]: 131072 bytes",
       [](auto& d) { d.machine_args[3] = std::string(kMaxMachineArgBytes, 'x'); }},
      {"parent_name: 256 bytes", [](auto& d) { d.parent_name = std::string(256, 'n'); }},
      {"parent_name: control", [](auto& d) { d.parent_name = "a\nb"; }},
      {"zero_pages: empty range", [](auto& d) { d.zero_pages[0].nb_pages = 0; }},
      {"zero_pages: pages [90, +11)", [](auto& d) { d.zero_pages[2].nb_pages = 11; }},
      {"zero_pages: the range at page 3", [](auto& d) { d.zero_pages[0].nb_pages = 4; }},
      {"zero_pages: 4194305 entries", [](auto& d) { d.zero_pages.resize(kMaxPageRanges + 1); }},
      {"absent_pages: the range", [](auto& d) { std::swap(d.absent_pages[0], d.absent_pages[1]); }},
      {"absent_pages: pages [1", [](auto& d) { d.absent_pages[1].first = Gfn{~0ULL}; }},
      {"working_set: the range at page 61", [](auto& d) { d.working_set[2] = {Gfn{61}, 1}; }},
      {"working_set: pages [100, +1)", [](auto& d) { d.working_set[0] = {Gfn{100}, 1}; }},
  };
  for (const WriterCase& c : cases) {
    Descriptor d = sample_descriptor();
    c.spoil(d);
    const Error error = encode_error(d);
    EXPECT_EQ(error.errnum, c.errnum) << c.says << ": " << error.what;
    EXPECT_THAT(error.what, HasSubstr(c.says));
  }
}

TEST(Descriptor, TheWriterRefusesMoreThanADescriptorCanBe) {
  Descriptor d = sample_descriptor();
  d.sections[0].bytes.resize(kMaxDescriptorBodyBytes);  // alone it would fit
  EXPECT_EQ(encode_error(d).errnum, EFBIG);
  EXPECT_THAT(encode_error(d).what, HasSubstr("body of 6710"));
  d.sections[0].bytes.resize(kMaxDescriptorBodyBytes + 1);
  EXPECT_EQ(encode_error(d).errnum, EFBIG);
  EXPECT_THAT(encode_error(d).what, HasSubstr("sections[0]"));
}

TEST(Descriptor, TheReaderRefusesAFieldOutsideItsBoundsAndNamesIt) {
  const std::string three_ends = number_field(2, 3);
  const std::vector<std::pair<const char*, std::string>> cases{
      {"image_id: is 0", fixed64_field(1, 0)},
      {"group: 5 bytes", bytes_field(6, "\3abcd")},
      {"group: 02:", bytes_field(6, "\2abcde")},
      {"server: 7 bytes", bytes_field(7, "\2abcdef")},
      {"server: 03:", bytes_field(7, "\3abcde")},
      {"group_key: 33 bytes", bytes_field(16, std::string(33, 'k'))},
      {"hash_root: 31 bytes", bytes_field(17, std::string(31, 'h'))},
      {"parent_uuid: 0 bytes", bytes_field(11, "")},
      {"parent_name: control", bytes_field(10, "\x7f")},
      {"spaces: space 256", bytes_field(3, number_field(1, 256) + number_field(2, 1))},
      {"spaces[2]: space 0", bytes_field(3, three_ends)},
      {"spaces[2]: nb_pages is 0", bytes_field(3, number_field(1, 2))},
      {"blocks[2]: name is empty", bytes_field(4, number_field(2, 80) + number_field(3, 1))},
      {"blocks[2]: nb_pages is 0", bytes_field(4, bytes_field(1, "x"))},
      {"sections[2]: type is 0", bytes_field(5, "")},
      {"sections[2]: a second", bytes_field(5, number_field(1, 1))},
      {"machine_args[4]: has a NUL", bytes_field(8, std::string_view{"\0", 1})},
      {"zero_pages: 7 numbers", bytes_field(12, varint(0))},
      {"zero_pages: pages [100, +1)", bytes_field(12, varint(0) + varint(1))},
      {"absent_pages: empty range", bytes_field(13, varint(0) + varint(0))},
      {"absent_pages: pages [54, +4294967295)", bytes_field(13, varint(0) + varint(~0U))},
      {"working_set: 4 steps, 3 lengths", bytes_field(14, varint(0))},
      {"working_set: pages [100, +1)", bytes_field(14, varint(0)) + bytes_field(15, varint(1))},
      // zigzag: -100 leads back to page 0; the sample has pages 1 and 2
      {"working_set: the range at page 1", bytes_field(14, varint(199)) + bytes_field(15, "\2")},
      {"body: field 20 is malformed", varint(20 << 3U | 3U)},
      {"body: field 20 is malformed", varint(20 << 3U | 2U) + varint(1)},
      {"body: field 14 is malformed", varint(14 << 3U | 2U) + std::string(5, '\xff') + "\x0f"},
      {"body: no field at byte", std::string(1, '\0')},
  };
  for (const auto& [says, fields] : cases) {
    const Error error = decode_error(sample_with(fields));
    EXPECT_EQ(error.errnum, EBADMSG) << says << ": " << error.what;
    EXPECT_THAT(error.what, HasSubstr(says));
  }
}

TEST(Descriptor, AFewBytesCannotBecomeMuchMemory) {
  std::string sections;
  for (int i = 0; i < 1'000'000; ++i) sections += bytes_field(5, "");
  EXPECT_EQ(decode_error(sample_with(sections)).errnum, EBADMSG);
  EXPECT_THAT(decode_error(sample_with(sections)).what, HasSubstr("fields"));
  const std::string numbers(2 * kMaxPageRanges + 1, '\1');
  for (unsigned field = 12; field <= 15; ++field) {
    const Error error = decode_error(sample_with(bytes_field(field, numbers)));
    EXPECT_EQ(error.errnum, EBADMSG);
    EXPECT_THAT(error.what, HasSubstr("numbers"));
  }
}

TEST(Descriptor, IgnoresFieldsThatALaterWriterAdded) {
  const auto later = sample_with(number_field(1000, 1) + bytes_field(1001, "new"));
  EXPECT_EQ(decode(later).value(), sample_descriptor());
}

TEST(Descriptor, KeepsAnUnknownSectionOnlyIfItIsOptional) {
  Descriptor d = sample_descriptor();
  d.sections.push_back({SectionType{kOptionalSection | 77}, bytes_of("new")});
  EXPECT_EQ(decode(encode(d).value()).value(), d);
  const auto mandatory = sample_with(bytes_field(5, number_field(1, 77)));
  EXPECT_EQ(decode_error(mandatory).errnum, ENOTSUP);
  EXPECT_THAT(decode_error(mandatory).what, HasSubstr("sections[2]: type 77"));
}

TEST(Descriptor, RefusesOtherVersionsAndUnknownHeaderFlags) {
  const Bytes file = encode(sample_descriptor()).value();
  const auto body = std::span{file}.subspan(kHeaderBytes);
  EXPECT_EQ(sealed(body), file);
  EXPECT_EQ(decode_error(sealed(body, 2)).errnum, ENOTSUP);
  EXPECT_THAT(decode_error(sealed(body, 2)).what, HasSubstr("version 2, this program reads 1"));
  EXPECT_EQ(decode_error(sealed(body, 0)).errnum, EBADMSG);
  EXPECT_EQ(decode_error(sealed(body, 1, 4)).errnum, ENOTSUP);
  EXPECT_THAT(decode_error(sealed(body, 1, 4)).what, HasSubstr("flags 0x4"));
}

TEST(Descriptor, RefusesWhatIsNotADescriptor) {
  for (const std::string_view text :
       {"GIF89a", "SFVMDESX.......................................", "QEVM\0\0\0\3"}) {
    EXPECT_EQ(decode_error(bytes_of(text)).errnum, EBADMSG);
    EXPECT_THAT(decode_error(bytes_of(text)).what, HasSubstr("not a VM descriptor")) << text;
  }
  EXPECT_EQ(decode_error(sealed({})).errnum, EBADMSG) << "an empty body has no image id";
}

TEST(Descriptor, RefusesABodyLargerThanItsBoundBeforeItLooksForIt) {
  Bytes file = sealed({});
  const Be64 huge{kMaxDescriptorBodyBytes + 1};
  std::memcpy(file.data() + 16, &huge, sizeof huge);
  const Be32 crc{crc32c(std::span{file}.first(28))};
  std::memcpy(file.data() + 28, &crc, sizeof crc);
  EXPECT_EQ(decode_error(file).errnum, EFBIG);
}

TEST(Descriptor, EveryPrefixIsRefusedAsTruncated) {
  const Bytes file = encode(sample_descriptor()).value();
  for (std::size_t size = 0; size < file.size(); ++size) {
    const Bytes prefix(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size));
    const Error error = decode_error(prefix);
    EXPECT_EQ(error.errnum, EBADMSG) << size;
    EXPECT_THAT(error.what, HasSubstr("truncated")) << size;
  }
  Bytes longer = file;
  longer.push_back(std::byte{});
  EXPECT_EQ(decode_error(longer).errnum, EBADMSG);
  EXPECT_THAT(decode_error(longer).what, HasSubstr("1 bytes behind its end"));
}

TEST(Descriptor, EveryFlippedBitIsNoticed) {
  Bytes file = encode(sample_descriptor()).value();
  for (std::size_t bit = 0; bit < file.size() * 8; ++bit) {
    file[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(decode_error(file).errnum, EBADMSG) << "bit " << bit;
    file[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(Descriptor, WhatIsAcceptedBehindGoodChecksumsKeepsEveryBound) {
  const Bytes file = encode(sample_descriptor()).value();
  Bytes body(file.begin() + kHeaderBytes, file.end());
  const auto check = [](std::span<const std::byte> hostile) {
    const auto d = decode(sealed(hostile));
    EXPECT_EQ(d ? encode_error(*d).errnum : 0, 0);
  };
  for (std::size_t bit = 0; bit < body.size() * 8; ++bit) {
    body[bit / 8] ^= std::byte{1} << (bit % 8);
    check(body);
    body[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  for (std::size_t size = 0; size < body.size(); ++size) check(std::span{body}.first(size));
}

/// A guest whose zero and free pages are scattered, with the device state of a virtio machine.
std::size_t realistic_bytes(std::uint64_t ram_bytes, std::size_t nb_zero_runs) {
  Descriptor d = sample_descriptor();
  const std::uint64_t nb_pages = ram_bytes / kPageSize;
  d.spaces = {{0, nb_pages}};
  d.blocks = {{"pc.ram", 0, nb_pages, nb_pages * kPageSize}};
  d.sections[1].bytes.resize(110 * 1024);
  const auto scatter = [nb_pages](std::size_t nb_runs) {
    std::vector<PageRange> ranges;
    const std::uint64_t stride = nb_pages / nb_runs;
    for (std::size_t i = 0; i < nb_runs; ++i) ranges.push_back({Gfn{i * stride + i % stride}, 1});
    return ranges;
  };
  d.zero_pages = scatter(nb_zero_runs);
  d.absent_pages = scatter(nb_zero_runs / 10);
  d.working_set = scatter(500);
  std::ranges::reverse(d.working_set);
  return encode(d).value().size();
}

TEST(Descriptor, IsSmallAgainstTheGuestItDescribes) {
  constexpr std::size_t kMegabyte = 1'000'000;
  EXPECT_LE(realistic_bytes(192 * kMegabyte, 15'000), 192 * kMegabyte / 500);
  EXPECT_LE(realistic_bytes(1000 * kMegabyte, 80'000), 1000 * kMegabyte / 1000);
}

}  // namespace
}  // namespace snowfabric
