// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>
#include <random>

#include <gmock/gmock.h>

#include "descriptor/qemu_stream.hpp"
#include "tests/unit/qemu_sample.hpp"

namespace snowfabric::qemu {

/// For comparisons and messages of the tests.
static bool operator==(const Message& a, const Message& b) {
  return a.kind == b.kind && a.pages == b.pages && a.value == b.value;
}
static void PrintTo(const Message& m, std::ostream* out) {
  *out << "{" << static_cast<int>(m.kind) << ", " << m.pages.first.value << " +" << m.pages.nb_pages
       << ", " << m.value << "}";
}

}  // namespace snowfabric::qemu

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;
using enum qemu::Message::Kind;
using qemu::Message;
using Messages = std::vector<Message>;

const std::vector<RamBlock> kBlocks{{"pc.ram", 0, 70, 70 * kPc}, {"pc.rom", 70, 2, 2 * kPc}};

Stream message(std::uint64_t type, const Stream& data) {
  return Stream{}.u16(type).u16(data.bytes.size()).add(data);
}
Stream ask(std::uint64_t start, std::uint64_t length) {
  return message(4, Stream{}.u64(start).u32(length));
}
Stream ask(std::uint64_t start, std::uint64_t length, std::string_view name) {
  return message(3, Stream{}.u64(start).u32(length).name(name));
}
Stream little(std::uint64_t word) {
  Stream out;
  for (int i = 0; i < 8; ++i) out.u8(word >> (8 * i) & 0xff);
  return out;
}
constexpr std::uint64_t kMark = 0x0123456789abcdef;
Stream bitmap(std::string_view name) { return message(5, Stream{}.name(name)); }

/// All messages of `bytes`, fed `piece` bytes at a time, up to the error.
struct Parsed {
  Messages messages;
  Error error{0, ""};
};
Parsed parse(std::string_view bytes, std::size_t piece = 1U << 20U) {
  qemu::ReturnPath path{kBlocks};
  Parsed parsed;
  while (!bytes.empty()) {
    auto in = std::as_bytes(std::span{bytes.substr(0, piece)});
    bytes.remove_prefix(in.size());
    for (;;) {
      const auto message = path.take(in);
      if (!message) {
        parsed.error = message.error();
        return parsed;
      }
      const std::optional<Message> whole = *message;
      if (!whole) break;
      parsed.messages.push_back(*whole);
    }
    EXPECT_TRUE(in.empty()) << "bytes left over";
  }
  return parsed;
}

Stream every_kind() {
  return message(2, Stream{}.u32(3))
      .add(ask(kPc, 2 * kPc, "pc.ram"))
      .add(ask(69 * kPc, kPc))
      .add(ask(kPc, kPc, "pc.rom"))
      .add(ask(0, 2 * kPc))
      .add(bitmap("pc.ram"))
      .u64(16)
      .add(little(0x8000'0000'0000'0005))
      .add(little(~std::uint64_t{0}))
      .u64(kMark)
      .add(ask(0, kPc))
      .add(message(6, Stream{}.u32(1)))
      .add(message(1, Stream{}.u32(0)));
}
const Messages kEveryKind{
    {kPong, {}, 3},
    {kPages, {Gfn{1}, 2}, 0},
    {kPages, {Gfn{69}, 1}, 0},
    {kPages, {Gfn{71}, 1}, 0},
    {kPages, {Gfn{70}, 2}, 0},  // without a name: the last one named
    {kReceived, {Gfn{0}, 64}, 0x8000'0000'0000'0005},
    {kReceived, {Gfn{64}, 6}, 0x3f},  // bits behind the last page are not handed on
    {kReceivedEnd, {Gfn{0}, 70}, 0},
    {kPages, {Gfn{70}, 1}, 0},  // a bitmap's name is not a request's
    {kResumeAck, {}, 1},
    {kShut, {}, 0},
};

TEST(ReturnPath, TellsEveryMessageHoweverItsBytesAreCut) {
  const Stream stream = every_kind();
  for (const std::size_t piece : {1U, 3U, 17U, 4096U}) {
    const Parsed parsed = parse(stream.bytes, piece);
    EXPECT_EQ(parsed.messages, kEveryKind) << piece;
    EXPECT_EQ(parsed.error.errnum, 0) << parsed.error.what;
  }
}

TEST(ReturnPath, APrefixTellsAPrefix) {
  const Stream stream = every_kind();
  for (std::size_t n = 0; n < stream.bytes.size(); ++n) {
    const Parsed parsed = parse(std::string_view{stream.bytes}.substr(0, n));
    EXPECT_EQ(parsed.error.errnum, 0) << n;
    ASSERT_LT(parsed.messages.size(), kEveryKind.size());
    EXPECT_TRUE(
        std::ranges::equal(parsed.messages, std::span{kEveryKind}.first(parsed.messages.size())))
        << n;
  }
}

TEST(ReturnPath, ABrokenShutKeepsItsStatus) {
  EXPECT_EQ(parse(message(1, Stream{}.u32(1)).bytes).messages, (Messages{{kShut, {}, 1}}));
}

TEST(ReturnPath, RefusesWhatIsNoMessage) {
  const struct {
    const char* text;
    Stream stream;
  } refusals[] = {
      {"type 0 with 4", message(0, Stream{}.u32(0))},
      {"type 7 with 4", message(7, Stream{}.u32(0))},
      {"type 65535 with 65535", Stream{}.u16(0xffff).u16(0xffff)},
      {"type 2 with 5", message(2, Stream{}.u32(0).u8(0))},
      {"type 4 with 11", message(4, Stream{}.fill('\0', 11))},
      {"type 3 with 12", message(3, Stream{}.fill('\0', 12))},
      {"type 3 with 269", Stream{}.u16(3).u16(269)},
      {"type 5 with 0", message(5, {})},
      {"type 5 with 257", Stream{}.u16(5).u16(257)},
      {"recovery with 0", message(6, Stream{}.u32(0))},
      {"unknown RAM block", ask(0, kPc)},
      {"unknown RAM block", ask(0, kPc, "pc.bios")},
      {"does not fill", message(3, Stream{}.u64(0).u32(kPc).u8(5).raw("pc.ram"))},
      {"does not fill", message(3, Stream{}.u64(0).u32(kPc).u8(7).raw("pc.ram"))},
      {"not whole pages", ask(1, kPc, "pc.ram")},
      {"not whole pages", ask(0, 1, "pc.ram")},
      {"not whole pages", ask(0, 0, "pc.ram")},
      {"which has 0x46000", ask(70 * kPc, kPc, "pc.ram")},
      {"which has 0x46000", ask(69 * kPc, 2 * kPc, "pc.ram")},
      {"which has 0x46000", ask(~std::uint64_t{0xfff}, 2 * kPc, "pc.ram")},
      {"what it has of an unknown", bitmap("pc.bios")},
      {"does not fill", message(5, Stream{}.u8(1).raw("pc.ram"))},
      {"bitmap of 8 bytes for 70", bitmap("pc.ram").u64(8)},
      {"bitmap of 24 bytes for 70", bitmap("pc.ram").u64(24)},
      {"bitmap of 18446744073709551615", bitmap("pc.ram").u64(~std::uint64_t{0})},
      {"does not end with its mark", bitmap("pc.rom").u64(8).u64(0).u64(kMark + 1)},
  };
  for (const auto& r : refusals) {
    const Parsed parsed = parse(r.stream.bytes);
    EXPECT_EQ(parsed.error.errnum, EBADMSG) << r.text;
    EXPECT_THAT(parsed.error.what, HasSubstr(r.text));
    EXPECT_THAT(parsed.error.what, HasSubstr("return path of QEMU, byte "));
  }
}

TEST(ReturnPath, AnUnknownBlockIsNotRemembered) {
  const Parsed parsed = parse(ask(0, kPc, "pc.ram").add(ask(0, kPc, "none")).bytes);
  EXPECT_EQ(parsed.messages.size(), 1U);
  EXPECT_THAT(parsed.error.what, HasSubstr("byte 23: asks for pages of an unknown"));
}

TEST(ReturnPath, NoBitFlipAsksForWhatIsNotThere) {
  const Stream stream = every_kind();
  for (std::size_t at = 0; at < stream.bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = stream.bytes;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      for (const Message& m : parse(flipped).messages)
        EXPECT_LE(m.pages.first.value + m.pages.nb_pages, 72U) << at;
    }
  }
}

TEST(ReturnPath, ForgetsTheOldConnection) {
  qemu::ReturnPath path{kBlocks};
  const Stream begun = ask(0, kPc, "pc.ram").add(bitmap("pc.ram")).u64(16).u32(0);
  auto in = std::as_bytes(std::span{begun.bytes});
  ASSERT_TRUE(path.take(in).value().has_value());
  ASSERT_FALSE(path.take(in).value().has_value());
  path.reset();
  const Stream pong = message(2, Stream{}.u32(9)).add(ask(0, kPc));
  in = std::as_bytes(std::span{pong.bytes});
  EXPECT_EQ(path.take(in).value(), (Message{kPong, {}, 9}));
  EXPECT_FALSE(path.take(in).has_value()) << "no block was named on this one";
}

}  // namespace
}  // namespace snowfabric::testing
