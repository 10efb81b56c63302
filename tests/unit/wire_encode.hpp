// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "fabric/wire.hpp"

namespace snowfabric::test {

/// A PAGE frame of two pages.
inline std::size_t encode_pair(std::span<std::byte> out, wire::Frame frame,
                               const wire::Identity& id, const MacAddr& dst, const MacAddr& src) {
  const auto key = [&] {
    return wire::PageKey{Gfn{frame.page.gfn.host()}, frame.page.crc32c.host()};
  };
  const wire::PageKey first = key();
  std::memcpy(out.data() + wire::kPairHeaderBytes, frame.tail.data(), kPageSize);
  static_cast<void>(frame.next_page());
  std::memcpy(out.data() + wire::kPairHeaderBytes + kPageSize, frame.tail.data(), kPageSize);
  wire::write_pair_header(out, id, dst, src, first, key(), frame.flags, frame.seq);
  return wire::kMaxFrameBytes;
}

/// The frame that `frame` was parsed from, made anew by the writers; no padding.
inline std::vector<std::byte> encode(const wire::Frame& frame, const MacAddr& dst,
                                     const MacAddr& src) {
  using wire::FrameType;
  const wire::Identity id{frame.image_id, frame.epoch, frame.incarnation, frame.space};
  std::vector<std::byte> out(wire::kMaxFrameBytes);
  const auto write = [&]() -> std::size_t {
    switch (frame.type) {
      case FrameType::kHello: return wire::write_hello(out, id, dst, src, frame.hello, frame.flags);
      case FrameType::kWelcome: return wire::write_welcome(out, id, dst, src, frame.welcome);
      case FrameType::kRequest: {
        std::vector<wire::WantEntry> wants;
        for (std::size_t i = 0; i < frame.nb_wants(); ++i) wants.push_back(frame.want(i));
        return wire::write_request(out, id, dst, src, frame.request, wants, frame.flags);
      }
      case FrameType::kPage: {
        const wire::PageBody& page = frame.page;
        if (!frame.second_body.empty()) return encode_pair(out, frame, id, dst, src);
        const std::size_t size =
            wire::write_page_header(out, id, dst, src, Gfn{page.gfn.host()}, page.crc32c.host(),
                                    page.fragment, page.nb_fragments, frame.flags, frame.seq);
        std::memcpy(out.data() + size, frame.tail.data(), frame.tail.size());
        return size + frame.tail.size();
      }
      case FrameType::kZeros:
      case FrameType::kAbsent: {
        std::vector<PageRange> ranges;
        for (std::size_t i = 0; i < frame.nb_ranges(); ++i) ranges.push_back(frame.range(i));
        return wire::write_ranges(out, frame.type, id, dst, src, ranges, frame.flags, frame.seq);
      }
      case FrameType::kBye:
        return wire::write_bye(out, id, dst, src, frame.bye.client_id.host(), frame.flags,
                               frame.seq);
    }
    return 0;
  };
  out.resize(write());
  return out;
}

}  // namespace snowfabric::test
