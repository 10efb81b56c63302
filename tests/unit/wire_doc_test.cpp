// SPDX-License-Identifier: BSD-3-Clause
// docs/wire-format.md is normative: its examples are the input here.
#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fabric/crc32c.hpp"
#include "fabric/seal.hpp"
#include "fabric/wire.hpp"
#include "tests/unit/wire_encode.hpp"
#include "tests/unit/wire_examples.hpp"

namespace snowfabric {
namespace {

using test::WireExample;
using wire::Frame;
using wire::FrameType;

constexpr const char* kDocument = SNOWFABRIC_SOURCE_DIR "/docs/wire-format.md";

const std::vector<WireExample>& examples() {
  static const auto kExamples = test::read_wire_examples(kDocument);
  return kExamples;
}

std::span<const std::byte> l2_payload(const WireExample& example) {
  return std::span{example.bytes}.subspan(sizeof(wire::EthHdr));
}

class WireDoc : public testing::TestWithParam<WireExample> {
 protected:
  void expect(const std::string& field, std::uint64_t decoded) const {
    EXPECT_EQ(GetParam().number(field), decoded) << field;
  }
  void expect_body(const Frame& frame) const;
  void expect_request(const Frame& frame) const;
  void expect_page(const Frame& frame) const;
  void expect_ranges(const Frame& frame) const;
};

void WireDoc::expect_body(const Frame& frame) const {
  switch (frame.type) {
    case FrameType::kHello:
      expect("client_id", frame.hello.client_id.host());
      return expect("mtu_bytes", frame.hello.mtu_bytes.host());
    case FrameType::kWelcome:
      expect("client_id", frame.welcome.client_id.host());
      expect("nb_pages", frame.welcome.nb_pages.host());
      expect("report_interval_us", frame.welcome.report_interval_us.host());
      expect("mtu_bytes", frame.welcome.mtu_bytes.host());
      return expect("nb_fragments", frame.welcome.nb_fragments);
    case FrameType::kRequest: return expect_request(frame);
    case FrameType::kPage: return expect_page(frame);
    case FrameType::kZeros:
    case FrameType::kAbsent: return expect_ranges(frame);
    case FrameType::kBye: return expect("client_id", frame.bye.client_id.host());
  }
}

void WireDoc::expect_request(const Frame& frame) const {
  const wire::ReportBody& report = frame.request.report;
  expect("client_id", frame.request.client_id.host());
  expect("clock_us", report.clock_us.host());
  expect("rx_bytes", report.rx_bytes.host());
  expect("rx_frames", report.rx_frames.host());
  expect("lost", report.lost.host());
  expect("srtt_us", report.srtt_us.host());
  expect("rttvar_us", report.rttvar_us.host());
  std::vector<std::string> wants;
  for (std::size_t i = 0; i < frame.nb_wants(); ++i) {
    const wire::WantEntry want = frame.want(i);
    wants.push_back(fmt::format("{:#x}+{}:{}:{}:{:#x}", want.first.host(), want.nb_pages.host(),
                                want.priority, want.flags, want.fragments));
  }
  EXPECT_EQ(wants, GetParam().all("want"));
}

void WireDoc::expect_page(const Frame& frame) const {
  std::vector<std::string> gfns, crcs, parts, of, data;
  Frame at = frame;
  do {
    const std::byte fill = at.tail.front();
    gfns.push_back(fmt::format("{:#x}", at.page.gfn.host()));
    crcs.push_back(fmt::format("{:#010x}", at.page.crc32c.host()));
    parts.push_back(std::to_string(at.page.fragment));
    of.push_back(std::to_string(at.page.nb_fragments));
    data.push_back(fmt::format("{:#x}*{}", std::to_integer<unsigned>(fill), at.tail.size()));
    EXPECT_EQ(std::ranges::count(at.tail, fill), std::ssize(at.tail));
    // the fragment's page is alike throughout
    EXPECT_EQ(crc32c(std::vector<std::byte>(kPageSize, fill)), at.page.crc32c.host());
  } while (at.next_page());
  EXPECT_EQ(gfns, GetParam().all("gfn"));
  EXPECT_EQ(crcs, GetParam().all("crc32c"));
  EXPECT_EQ(parts, GetParam().all("fragment"));
  EXPECT_EQ(of, GetParam().all("nb_fragments"));
  EXPECT_EQ(data, GetParam().all("data"));
}

void WireDoc::expect_ranges(const Frame& frame) const {
  std::vector<std::string> ranges;
  for (std::size_t i = 0; i < frame.nb_ranges(); ++i)
    ranges.push_back(fmt::format("{:#x}+{}", frame.range(i).first.value, frame.range(i).nb_pages));
  EXPECT_EQ(ranges, GetParam().all("range"));
}

TEST_P(WireDoc, ExampleDecodesToItsFieldsAndEncodesToItsBytes) {
  const WireExample& example = GetParam();
  ASSERT_GE(example.bytes.size(), 60U) << "shorter than Ethernet allows: padding is missing";
  Frame frame;
  ASSERT_EQ(wire::parse(l2_payload(example), frame), wire::Drop::kNone);
  expect("type", static_cast<std::uint64_t>(frame.type));
  expect("flags", frame.flags);
  expect("space", frame.space);
  expect("image_id", frame.image_id);
  expect("epoch", frame.epoch);
  expect("incarnation", frame.incarnation);
  expect("seq", frame.seq);
  expect_body(frame);

  const auto dst = parse_mac(example.text("dst"));
  const auto src = parse_mac(example.text("src"));
  ASSERT_TRUE(dst && src);
  if (dst->is_multicast() && *dst != kBroadcast) {
    EXPECT_EQ(*dst, group_address(frame.image_id));
  }
  std::vector<std::byte> again = test::encode(frame, *dst, *src);
  expect("payload_len", again.size() - sizeof(wire::EthHdr) - sizeof(wire::Header));
  const std::size_t padding = example.fields.contains("padding") ? example.number("padding") : 0;
  again.resize(again.size() + padding);
  EXPECT_EQ(again, example.bytes);
}

INSTANTIATE_TEST_SUITE_P(Examples, WireDoc, testing::ValuesIn(examples()),
                         [](const auto& example) { return example.param.name; });

template <std::size_t kBytes>
std::array<std::byte, kBytes> bytes_of(const std::string& hexadecimal) {
  std::array<std::byte, kBytes> bytes;
  for (std::size_t i = 0; i < kBytes; ++i)
    bytes[i] = static_cast<std::byte>(std::stoul(hexadecimal.substr(2 * i, 2), nullptr, 16));
  return bytes;
}

/// The frame that is sealed there, as its sender would have sent it in the clear.
std::vector<std::byte> clear_frame(const WireExample& sealed) {
  const auto found = std::ranges::find(examples(), sealed.name, &WireExample::name);
  if (found == examples().end()) throw std::runtime_error{"no example " + sealed.name};
  std::vector<std::byte> frame = found->bytes;
  frame.resize(frame.size() - found->number("padding"));
  return frame;
}

TEST(WireDocument, TheSealedExampleOpensToItsFrameAndIsSealedToItsBytes) {
  const auto sealed = test::read_wire_examples(kDocument, "sealed");
  ASSERT_EQ(sealed.size(), 1U);
  const WireExample& example = sealed.front();
  const auto frame = clear_frame(example);
  const GroupKey key{bytes_of<GroupKey::kBytes>(example.text("key"))};
  const auto session = bytes_of<sizeof(wire::Session)>(example.text("session"));
  wire::SealHeader header;
  std::memcpy(&header, l2_payload(example).data(), sizeof header);
  EXPECT_EQ(header.session, session);
  EXPECT_EQ(header.counter.host(), example.number("counter"));
  EXPECT_EQ(header.length.host(), example.number("length"));

  const auto receiver = std::move(Seal::make(key, 1).value());
  wire::EthHdr eth;
  std::memcpy(&eth, example.bytes.data(), sizeof eth);
  OpenBuffer out;
  std::span<const std::byte> inner;
  ASSERT_EQ(receiver->open(eth, l2_payload(example), out, inner), wire::Drop::kNone);
  EXPECT_TRUE(std::ranges::equal(inner, std::span{frame}.subspan(sizeof eth)));

  const auto sender = std::move(Seal::make_of_session(key, 1, session).value());
  std::vector<std::byte> again(frame.size() + wire::kSealBytes);
  std::ranges::copy(frame, again.begin() + Seal::kHeadroom);
  ASSERT_EQ(sender->seal(again, frame.size()), again.size());
  EXPECT_EQ(again, example.bytes);
}

TEST(WireDocument, HasAnExampleOfEveryFrameType) {
  std::set<std::uint64_t> types;
  for (const WireExample& example : examples()) types.insert(example.number("type"));
  EXPECT_EQ(types, (std::set<std::uint64_t>{1, 2, 3, 4, 5, 6, 7}));
}

TEST(WireDocument, ExplainsEveryReasonToDropAFrame) {
  std::ifstream file{kDocument};
  const std::string text{std::istreambuf_iterator<char>{file}, {}};
  for (const std::string_view name : wire::kDropNames) {
    if (name != "none") {
      EXPECT_NE(text.find(fmt::format("| `rx_drop_{}` |", name)), std::string::npos) << name;
    }
  }
}

}  // namespace
}  // namespace snowfabric
