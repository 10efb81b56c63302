// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "fabric/wire.hpp"

/// Frames of every kind, good and spoiled, for the tests of the wire format.
namespace snowfabric::wire::test_frames {

using Bytes = std::vector<std::byte>;

inline constexpr Identity kId{0x1122334455667788, 7, 0xc0ffee01, 3};
inline constexpr MacAddr kServer{{2, 0, 0, 0, 0, 1}};
inline constexpr MacAddr kClient{{2, 0, 0, 0, 0, 2}};

inline WantEntry want(std::uint64_t first, std::uint16_t nb_pages,
                      Priority priority = Priority::kDemand, std::uint8_t flags = 0,
                      std::uint8_t fragments = 0) {
  return {.first = first,
          .nb_pages = nb_pages,
          .priority = static_cast<std::uint8_t>(priority),
          .flags = flags,
          .fragments = fragments,
          .reserved = {}};
}

inline HelloBody hello_body() { return {.client_id = 0xabcU, .mtu_bytes = 1500, .reserved = {}}; }
inline WelcomeBody welcome_body() {
  return {.client_id = 0xabcU,
          .nb_pages = 65536U,
          .report_interval_us = 50000U,
          .mtu_bytes = 1500,
          .nb_fragments = 3,
          .reserved = 0};
}
inline RequestBody request_body() {
  return {.client_id = 0xabcU,
          .report = {.clock_us = 1U << 20U,
                     .rx_bytes = 1ULL << 40U,
                     .rx_frames = ~0U,
                     .lost = 5U,
                     .srtt_us = 180U,
                     .rttvar_us = 35U}};
}

/// Runs a writer and cuts its buffer to what it wrote.
template <class Write>
inline Bytes made_by(Write&& write) {
  Bytes out(kMaxFrameBytes);
  out.resize(write(std::span{out}));
  return out;
}
inline Bytes hello_frame() {
  return made_by([](auto out) { return write_hello(out, kId, kServer, kClient, hello_body()); });
}
inline Bytes welcome_frame() {
  return made_by(
      [](auto out) { return write_welcome(out, kId, kClient, kServer, welcome_body()); });
}
inline Bytes request_frame(std::span<const WantEntry> wants) {
  return made_by(
      [&](auto out) { return write_request(out, kId, kServer, kClient, request_body(), wants); });
}
inline Bytes page_frame(std::size_t fragment, std::size_t nb_fragments) {
  return made_by([&](auto out) {
    const std::size_t size = write_page_header(out, kId, kClient, kServer, Gfn{0x42}, 0xdeadbeef,
                                               fragment, nb_fragments, kFlagSequenced, 99);
    const std::size_t data = fragment_bytes(fragment, nb_fragments);
    std::memset(out.data() + size, 'p', data);
    return size + data;
  });
}
inline Bytes pair_frame() {
  return made_by([&](auto out) {
    const std::size_t size = write_pair_header(out, kId, kClient, kServer, {Gfn{0x42}, 0xdeadbeef},
                                               {Gfn{0x17}, 0xfeedf00d}, kFlagSequenced, 99);
    std::memset(out.data() + size, 'p', kPageSize);
    std::memset(out.data() + size + kPageSize, 'q', kPageSize);
    return size + 2 * kPageSize;
  });
}
inline Bytes range_frame(FrameType type, std::span<const PageRange> ranges) {
  return made_by([&](auto out) {
    return write_ranges(out, type, kId, kClient, kServer, ranges, kFlagSequenced, 100);
  });
}
inline Bytes bye_frame(std::uint64_t client_id = 0xabc) {
  return made_by([&](auto out) {
    return write_bye(out, kId, kServer, kClient, client_id, kFlagSequenced, 101);
  });
}

/// One frame of every type and shape.
inline std::vector<Bytes> frames_of_all_kinds() {
  const std::array wants{want(1, 1), want(0x1000, 256, Priority::kPrefetch),
                         want(7, 1, Priority::kDemand, kWantRetry, 0b101)};
  const std::array ranges{PageRange{Gfn{0}, 1}, PageRange{Gfn{0x5000}, 4096}};
  std::vector<Bytes> frames{hello_frame(),
                            welcome_frame(),
                            request_frame({}),
                            request_frame(wants),
                            page_frame(0, 1),
                            page_frame(0, 3),
                            page_frame(2, 3),
                            page_frame(7, 8),
                            pair_frame(),
                            bye_frame(),
                            range_frame(FrameType::kZeros, ranges),
                            range_frame(FrameType::kAbsent, std::span{ranges}.first(1))};
  return frames;
}

/// Parses from a heap block of exactly that size, so that ASan sees any byte read behind it.
/// `frame` borrows until the next call.
inline Drop parse_exact(std::span<const std::byte> ethernet, std::size_t nb_bytes, Frame& frame) {
  static Bytes block;
  const auto payload = ethernet.subspan(sizeof(EthHdr), nb_bytes);
  block = Bytes(payload.begin(), payload.end());
  block.shrink_to_fit();
  return parse(block, frame);
}
inline Drop verdict(const Bytes& ethernet) {
  Frame frame;
  return parse_exact(ethernet, ethernet.size() - sizeof(EthHdr), frame);
}

/// A good frame with one byte of the common header or body changed.
inline Bytes with(Bytes frame, std::size_t offset_behind_ethernet, std::uint8_t value) {
  frame.at(sizeof(EthHdr) + offset_behind_ethernet) = std::byte{value};
  return frame;
}
/// A good frame with bytes added to or taken from its body, and payload_len to match.
inline Bytes resized(Bytes frame, std::ptrdiff_t by) {
  frame.resize(static_cast<std::size_t>(std::ssize(frame) + by));
  const Be16 len{static_cast<std::uint16_t>(frame.size() - sizeof(EthHdr) - sizeof(Header))};
  std::memcpy(frame.data() + sizeof(EthHdr) + offsetof(Header, payload_len), &len, sizeof len);
  return frame;
}

inline constexpr std::size_t kBody =
    sizeof(Header);  // offset of the body behind the Ethernet header

}  // namespace snowfabric::wire::test_frames
