// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "fabric/server_engine.hpp"
#include "fabric/wire.hpp"

/// Frames of one image's family made of a fuzzer's input, without their Ethernet headers: they get
/// past the first checks.
namespace snowfabric::fuzz {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kImageId = 0x5eed;
inline constexpr MacAddr kServerMac{{2, 0, 0, 0, 0, 1}}, kClientMac{{2, 0, 0, 0, 0, 2}};

/// The image that both targets serve. Borrows.
inline ImageView view_of(std::span<const std::uint32_t> checksums,
                         std::span<const std::uint64_t> zeros) {
  return {.image_id = kImageId,
          .epoch = 1,
          .nb_pages = checksums.size(),
          .crc32c = checksums,
          .zero_words = zeros};
}

/// Takes the input apart.
class Input {
 public:
  explicit Input(std::span<const std::byte> bytes) : bytes_{bytes} {}
  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  std::uint8_t byte() {
    return empty() ? std::uint8_t{0} : std::to_integer<std::uint8_t>(take(1)[0]);
  }
  std::uint16_t word() {
    const unsigned high = byte() * 256U;
    return static_cast<std::uint16_t>(high + byte());
  }
  std::span<const std::byte> take(std::size_t most) {
    const auto taken = bytes_.first(std::min(most, bytes_.size()));
    bytes_ = bytes_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const std::byte> bytes_;
};

/// Who speaks: mostly somebody the engines know.
inline wire::Identity identity(Input& in) { return {kImageId, 1, in.byte() % 4U, 0}; }

/// What a writer wrote, behind the Ethernet header.
template <class Write>
Bytes written(Write&& write) {
  Bytes frame(wire::kMaxFrameBytes);
  frame.resize(write(std::span{frame}));
  frame.erase(frame.begin(), frame.begin() + sizeof(wire::EthHdr));
  return frame;
}

/// Any body.
inline Bytes dressed(Input& in) {
  wire::Header header{.magic = wire::kMagic,
                      .version = wire::kVersion,
                      .type = static_cast<std::uint8_t>(1 + in.byte() % 7),
                      .flags = in.byte(),
                      .space = 0,
                      .payload_len = 0,
                      .image_id = kImageId,
                      .epoch = 1,
                      .incarnation = std::uint32_t{in.byte()} % 3,
                      .seq = std::uint32_t{in.word()}};
  const auto body = in.take(in.word() % 1500);
  header.payload_len = static_cast<std::uint16_t>(body.size());
  Bytes frame(sizeof header + body.size());
  std::memcpy(frame.data(), &header, sizeof header);
  std::ranges::copy(body, frame.begin() + sizeof header);
  return frame;
}

inline Bytes request(Input& in, std::uint8_t flags = 0) {
  wire::RequestBody body{.client_id = 1U + in.byte() % 5U, .report = {}};
  std::ranges::copy(in.take(sizeof body.report), reinterpret_cast<std::byte*>(&body.report));
  std::vector<wire::WantEntry> wants(in.byte() % 8U);
  for (wire::WantEntry& want : wants) {
    const std::uint8_t choice = in.byte();
    const bool one = (choice & 1U) != 0;
    want = {.first = in.byte(),
            .nb_pages = static_cast<std::uint16_t>(one ? 1 : 1 + in.byte()),
            .priority = static_cast<std::uint8_t>(choice >> 1U & 1U),
            .flags = static_cast<std::uint8_t>(choice >> 2U & 1U),
            .fragments = one ? in.byte() : std::uint8_t{0},
            .reserved = {}};
  }
  const wire::Identity who = identity(in);
  return written([&](auto out) {
    return wire::write_request(out, who, kServerMac, kClientMac, body, wants, flags);
  });
}

inline Bytes ranges(Input& in) {
  const auto type = in.byte() % 2 == 0 ? wire::FrameType::kZeros : wire::FrameType::kAbsent;
  std::vector<PageRange> some(1 + in.byte() % 4U);
  for (PageRange& range : some) {
    const Gfn first{in.byte()};
    range = {first, 1U + in.word() % 4096U};
  }
  const wire::Identity who = identity(in);
  return written([&](auto out) {
    return wire::write_ranges(out, type, who, kClientMac, kServerMac, some, wire::kFlagSequenced,
                              0);
  });
}

/// Mostly a true one of an image of so many pages, and to client 1.
inline Bytes welcome(Input& in, std::uint64_t nb_pages) {
  constexpr std::uint16_t kMtu = 1500;
  const wire::WelcomeBody body{.client_id = 1U,
                               .nb_pages = in.byte() % 8 == 0 ? in.byte() : nb_pages,
                               .report_interval_us = std::uint32_t{in.word()},
                               .mtu_bytes = in.byte() % 8 == 0 ? in.word() : kMtu,
                               .nb_fragments = in.byte() % 8 == 0 ? in.byte() : std::uint8_t{3},
                               .reserved = 0};
  const wire::Identity who = identity(in);
  return written(
      [&](auto out) { return wire::write_welcome(out, who, kClientMac, kServerMac, body); });
}

}  // namespace snowfabric::fuzz
