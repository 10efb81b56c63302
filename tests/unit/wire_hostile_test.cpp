// SPDX-License-Identifier: BSD-3-Clause
// Bytes that nobody should send. Build with ASan: reads behind a frame's end must show.
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/wire.hpp"
#include "tests/unit/wire_frames.hpp"

namespace snowfabric::wire {
namespace {

using namespace test_frames;

TEST(WireHostile, EveryTruncationIsRejected) {
  for (const Bytes& bytes : frames_of_all_kinds())
    for (std::size_t size = 0; size < bytes.size() - sizeof(EthHdr); ++size) {
      Frame frame;
      ASSERT_EQ(parse_exact(bytes, size, frame), Drop::kTruncated) << size;
    }
}

/// Every span inside the bytes given, every accessor inside the span.
void expect_in_bounds(std::span<const std::byte> payload, const Frame& frame) {
  if (!frame.tail.empty()) {
    ASSERT_GE(frame.tail.data(), payload.data());
    ASSERT_LE(frame.tail.data() + frame.tail.size(), payload.data() + payload.size());
  }
  ASSERT_LE(frame.tail.size(), kPageSize);
  if (!frame.second_body.empty()) {
    ASSERT_EQ(frame.second_body.size(), sizeof(PageBody));
    ASSERT_EQ(frame.second_tail.size(), kPageSize);
    ASSERT_GE(frame.second_body.data(), payload.data());
    ASSERT_LE(frame.second_tail.data() + kPageSize, payload.data() + payload.size());
  }
  if (frame.type == FrameType::kRequest) {
    ASSERT_LE(frame.nb_wants(), kMaxWants);
  }
  if (frame.type == FrameType::kPage) {
    const std::size_t n = frame.page.nb_fragments;
    ASSERT_LE(frame.page.fragment * fragment_stride(n) + frame.tail.size(), kPageSize);
  }
}

TEST(WireHostile, RandomBytesNeverLeadOutOfBounds) {
  constexpr unsigned kSeed = 20240611;
  std::mt19937 random{kSeed};
  std::size_t nb_parsed = 0;
  const std::vector<Bytes> seeds = frames_of_all_kinds();
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes = seeds[random() % seeds.size()];
    if (round % 4 == 0) bytes.resize(sizeof(EthHdr) + random() % 200);
    const std::size_t from = round % 4 == 0 ? sizeof(Header) - 20 : 2;
    for (auto flips = random() % 6; flips > 0; --flips) {
      const std::size_t at = sizeof(EthHdr) + from + random() % 64;
      if (at < bytes.size()) bytes[at] = static_cast<std::byte>(random());
    }
    const Bytes payload(bytes.begin() + sizeof(EthHdr), bytes.end());
    Frame frame;
    if (parse(payload, frame) != Drop::kNone) continue;
    ++nb_parsed;
    ASSERT_NO_FATAL_FAILURE(expect_in_bounds(payload, frame)) << "seed " << kSeed << ' ' << round;
  }
  EXPECT_GT(nb_parsed, 1000U) << "the generator must get past the header checks";
}

TEST(WireHostile, NoiseIsNeverAFrame) {
  std::mt19937 random{7};
  for (int round = 0; round < 20000; ++round) {
    Bytes payload(random() % 128);
    for (std::byte& byte : payload) byte = static_cast<std::byte>(random());
    Frame frame;
    ASSERT_NE(parse(payload, frame), Drop::kNone) << round;
  }
}

}  // namespace
}  // namespace snowfabric::wire
