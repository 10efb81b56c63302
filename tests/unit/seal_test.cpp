// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/seal.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace snowfabric {
namespace {

using ::testing::HasSubstr;
using wire::Drop;

using Frame = std::vector<std::byte>;
constexpr std::size_t kEth = sizeof(wire::EthHdr);
constexpr std::size_t kHead = kEth + sizeof(wire::SealHeader);

GroupKey key_of(int first) {
  GroupKey::Bytes bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(first + static_cast<int>(i));
  return GroupKey{bytes};
}

std::unique_ptr<Seal> seal_of(const GroupKey& key, std::size_t max_senders = 4) {
  auto made = Seal::make(key, max_senders);
  EXPECT_TRUE(made) << made.error().what;
  return std::move(*made);
}

/// A frame of so many bytes behind its Ethernet header, all different.
Frame frame_of(std::size_t inner_bytes) {
  Frame frame(kEth + inner_bytes);
  const std::array<unsigned, kEth> eth{0x02, 0x5f, 0, 0, 0,    0x01, 0x02,
                                       0x5f, 0,    0, 0, 0x11, 0x88, 0xb5};
  for (std::size_t i = 0; i < kEth; ++i) frame[i] = static_cast<std::byte>(eth[i]);
  for (std::size_t i = 0; i < inner_bytes; ++i) frame[kEth + i] = static_cast<std::byte>(i * 7);
  return frame;
}

Frame sealed(Seal& seal, const Frame& frame) {
  Frame buffer(frame.size() + wire::kSealBytes);
  std::ranges::copy(frame, buffer.begin() + Seal::kHeadroom);
  EXPECT_EQ(seal.seal(buffer, frame.size()), buffer.size());
  return buffer;
}

/// A receiver of the group, and what came out of the last frame.
struct Receiver {
  std::unique_ptr<Seal> seal;
  OpenBuffer out{};
  std::span<const std::byte> inner{};

  Drop open(const Frame& frame) {
    wire::EthHdr eth;
    std::memcpy(&eth, frame.data(), sizeof eth);
    inner = {};
    return seal->open(eth, std::span{frame}.subspan(kEth), out, inner);
  }
  Drop open_and_remember(const Frame& frame) {
    const Drop why = open(frame);
    if (why == Drop::kNone) seal->remember_sender();
    return why;
  }
};

struct SealTest : ::testing::Test {
  GroupKey key = key_of(0);
  std::unique_ptr<Seal> sender = seal_of(key);
  Receiver receiver{seal_of(key)};
};

TEST_F(SealTest, WhatWasSealedIsOpenedAsItWas) {
  for (const std::size_t inner_bytes : {1UZ, 28UZ, 44UZ, 1440UZ, wire::kMaxFrameBytes - kEth}) {
    const Frame frame = frame_of(inner_bytes);
    const Frame wired = sealed(*sender, frame);
    EXPECT_TRUE(std::ranges::equal(std::span{wired}.first(kEth), std::span{frame}.first(kEth)));
    ASSERT_EQ(receiver.open(wired), Drop::kNone) << inner_bytes;
    EXPECT_TRUE(std::ranges::equal(receiver.inner, std::span{frame}.subspan(kEth)));
  }
}

TEST_F(SealTest, NothingOfTheFrameIsReadable) {
  const Frame frame = frame_of(256);
  const Frame wired = sealed(*sender, frame);
  const auto piece = std::span{frame}.subspan(kEth, 8);
  EXPECT_TRUE(std::ranges::search(std::span{wired}.subspan(kHead), piece).empty());
}

TEST_F(SealTest, AFrameIsTheOneOfTheStandards) {
  // Made by OpenSSL 3.0 and Python's hmac: group key 00 .. 1f, counter 7.
  constexpr std::string_view kHex =
      "025f00000001025f0000001188b553580100002c0000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf0000000000000007"
      "e41f7ae714cc388155e6aeb678048f65d89f236d01a73178a17fdd59f5b81e06fe2ec68ec803487811cb14a37b25"
      "cd9adb93be9cca8201253b631038";
  Frame wired;
  for (std::size_t i = 0; i < kHex.size(); i += 2)
    wired.push_back(static_cast<std::byte>(std::stoi(std::string{kHex.substr(i, 2)}, nullptr, 16)));
  ASSERT_EQ(receiver.open(wired), Drop::kNone);
  const Frame frame = frame_of(44);
  EXPECT_TRUE(std::ranges::equal(receiver.inner, std::span{frame}.subspan(kEth)));
}

TEST_F(SealTest, AFlippedBitAnywhereIsRefused) {
  ASSERT_EQ(receiver.open_and_remember(sealed(*sender, frame_of(44))), Drop::kNone);
  const Frame wired = sealed(*sender, frame_of(44));
  for (std::size_t bit = 0; bit < 8 * wired.size(); ++bit) {
    Frame flipped = wired;
    flipped[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    EXPECT_NE(receiver.open(flipped), Drop::kNone) << "bit " << bit;
    EXPECT_TRUE(receiver.inner.empty());
  }
  EXPECT_EQ(receiver.open(wired), Drop::kNone);  // none of them took its place
}

TEST_F(SealTest, AFrameThatIsCutShortIsRefused) {
  const Frame wired = sealed(*sender, frame_of(44));
  for (std::size_t n = kEth; n < wired.size(); ++n)
    EXPECT_EQ(receiver.open(Frame(wired.begin(), wired.begin() + static_cast<std::ptrdiff_t>(n))),
              Drop::kTruncated)
        << n;
}

TEST_F(SealTest, PaddingBehindItIsIgnored) {
  Frame wired = sealed(*sender, frame_of(44));
  wired.resize(wired.size() + 30, std::byte{0xee});
  EXPECT_EQ(receiver.open(wired), Drop::kNone);
  EXPECT_EQ(receiver.inner.size(), 44U);
}

TEST_F(SealTest, AFrameInTheClearIsRefused) {
  Frame frame = frame_of(200);
  frame[kEth] = std::byte{0x53};
  frame[kEth + 1] = std::byte{0x46};
  EXPECT_EQ(receiver.open(frame), Drop::kUnsealed);
}

TEST_F(SealTest, AnotherGroupsFrameIsRefused) {
  const auto other = seal_of(key_of(1));
  EXPECT_EQ(receiver.open(sealed(*other, frame_of(44))), Drop::kBadSeal);
}

TEST_F(SealTest, AFrameIsTakenOnce) {
  const Frame first = sealed(*sender, frame_of(44)), second = sealed(*sender, frame_of(44));
  EXPECT_EQ(receiver.open_and_remember(second), Drop::kNone);
  EXPECT_EQ(receiver.open(first), Drop::kNone);  // late, but not seen
  EXPECT_EQ(receiver.open(first), Drop::kReplayed);
  EXPECT_EQ(receiver.open(second), Drop::kReplayed);
}

TEST_F(SealTest, ARestartedSenderNeverMeetsAKeyAndANonceAgain) {
  std::set<Frame> heads;  // session and counter
  for (int start = 0; start < 50; ++start) {
    const auto again = seal_of(key);
    for (int i = 0; i < 20; ++i) {
      const Frame wired = sealed(*again, frame_of(44));
      EXPECT_TRUE(heads.emplace(wired.begin() + kEth, wired.begin() + kHead).second);
    }
  }
}

TEST_F(SealTest, TheSameFrameIsNeverTheSameOnTheWire) {
  const Frame first = sealed(*sender, frame_of(44)), second = sealed(*sender, frame_of(44));
  EXPECT_FALSE(
      std::ranges::equal(std::span{first}.subspan(kHead), std::span{second}.subspan(kHead)));
}

TEST_F(SealTest, OurOwnFrameIsNotTaken) {
  const Frame wired = sealed(*receiver.seal, frame_of(44));
  EXPECT_EQ(receiver.open(wired), Drop::kReplayed);
}

TEST_F(SealTest, WhoIsNotRememberedFillsNoTable) {
  receiver.seal = seal_of(key, 1);
  for (int i = 0; i < 10; ++i) {
    const auto stranger = seal_of(key);
    EXPECT_EQ(receiver.open(sealed(*stranger, frame_of(44))), Drop::kNone);
  }
  const Frame wired = sealed(*sender, frame_of(44));
  EXPECT_EQ(receiver.open_and_remember(wired), Drop::kNone);
  const auto stranger = seal_of(key);
  EXPECT_EQ(receiver.open(sealed(*stranger, frame_of(44))), Drop::kNone);
  EXPECT_EQ(receiver.open(wired), Drop::kReplayed);
}

TEST_F(SealTest, WhoIsSilentLongestIsForgottenFirstAndReplaysKeepNobody) {
  receiver.seal = seal_of(key, 2);
  const auto second = seal_of(key), third = seal_of(key);
  const Frame first_of = sealed(*sender, frame_of(44)), second_of = sealed(*second, frame_of(44));
  EXPECT_EQ(receiver.open_and_remember(first_of), Drop::kNone);
  EXPECT_EQ(receiver.open_and_remember(second_of), Drop::kNone);
  EXPECT_EQ(receiver.open_and_remember(first_of), Drop::kReplayed);
  EXPECT_EQ(receiver.open_and_remember(sealed(*third, frame_of(44))), Drop::kNone);
  EXPECT_EQ(receiver.open(second_of), Drop::kReplayed);
  EXPECT_EQ(receiver.open(first_of), Drop::kNone);  // a stranger again
}

TEST_F(SealTest, WhoIsHeardAgainIsNotForgottenNext) {
  receiver.seal = seal_of(key, 2);
  const auto second = seal_of(key), third = seal_of(key);
  const Frame first_of = sealed(*sender, frame_of(44)), second_of = sealed(*second, frame_of(44));
  EXPECT_EQ(receiver.open_and_remember(first_of), Drop::kNone);
  EXPECT_EQ(receiver.open_and_remember(second_of), Drop::kNone);
  EXPECT_EQ(receiver.open(sealed(*sender, frame_of(44))), Drop::kNone);
  EXPECT_EQ(receiver.open_and_remember(sealed(*third, frame_of(44))), Drop::kNone);
  EXPECT_EQ(receiver.open(first_of), Drop::kReplayed);
  EXPECT_EQ(receiver.open(second_of), Drop::kNone);  // a stranger again
}

TEST(Replays, EachFrameIsAcceptedOnceWhateverTheOrder) {
  ReplayWindow window;
  std::vector<std::uint64_t> counters;
  for (std::uint64_t i = 1; i <= 100'000; ++i) counters.push_back(i);
  for (std::size_t i = 0; i + 400 < counters.size(); i += 400)
    std::reverse(counters.begin() + static_cast<std::ptrdiff_t>(i),
                 counters.begin() + static_cast<std::ptrdiff_t>(i) + 400);
  for (const std::uint64_t counter : counters) {
    EXPECT_TRUE(window.accept(counter)) << counter;
    EXPECT_FALSE(window.accept(counter)) << counter;
  }
}

TEST(Replays, WhatIsTooOldToTellIsRefused) {
  ReplayWindow window;
  EXPECT_TRUE(window.accept(10'000));
  EXPECT_TRUE(window.accept(10'000 - ReplayWindow::kFrames + 1));
  EXPECT_FALSE(window.accept(10'000 - ReplayWindow::kFrames));
  EXPECT_TRUE(window.accept(1'000'000));
  EXPECT_FALSE(window.accept(10'001));
  EXPECT_FALSE(window.accept(0));
}

struct KeyFile : ::testing::Test {
  std::string path = "/tmp/sf_key_" + std::to_string(getpid());
  ~KeyFile() override { std::filesystem::remove(path); }

  Result<GroupKey> read(const std::string& text, std::filesystem::perms perms) {
    std::ofstream{path} << text;
    std::filesystem::permissions(path, perms);
    return GroupKey::read(path);
  }
  static constexpr auto kOwner =
      std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
};

TEST_F(KeyFile, HasTheKeyInHexadecimal) {
  std::string text;
  for (int i = 0; i < 32; ++i)
    text += i < 16 ? "0" + std::string{"0123456789abcdef"[i]}
                   : "1" + std::string{"0123456789ABCDEF"[i - 16]};
  for (const char* end : {"", "\n"}) {
    const auto key = read(text + end, kOwner);
    ASSERT_TRUE(key) << key.error().what;
    EXPECT_EQ(key->bytes(), key_of(0).bytes());
  }
}

TEST_F(KeyFile, ThatIsSomethingElseIsRefused) {
  for (const std::string& text :
       {std::string{}, std::string(63, 'a'), std::string(65, 'a'), std::string(64, 'g'),
        std::string(64, 'a') + "\n\n", std::string(10'000, 'a')}) {
    const auto key = read(text, kOwner);
    ASSERT_FALSE(key) << text.size();
    EXPECT_EQ(key.error().errnum, EBADMSG);
    EXPECT_THAT(key.error().what, HasSubstr(path));
  }
  EXPECT_EQ(GroupKey::read("/tmp/sf_there_is_none").error().errnum, ENOENT);
}

TEST_F(KeyFile, ThatOthersMayReadIsRefused) {
  const auto key = read(std::string(64, 'a'), kOwner | std::filesystem::perms::others_read);
  ASSERT_FALSE(key);
  EXPECT_EQ(key.error().errnum, EACCES);
}

}  // namespace
}  // namespace snowfabric
