// SPDX-License-Identifier: BSD-3-Clause
#include "sim/frame_text.hpp"

#include <cstdint>

#include <fmt/format.h>

#include "fabric/wire.hpp"

namespace snowfabric::sim {
namespace {

std::string pages(std::uint64_t first, std::uint64_t nb_pages) {
  if (nb_pages == 1) return fmt::format("{}", first);
  return fmt::format("{} to {}", first, first + nb_pages - 1);
}

std::string of_ranges(const wire::Frame& frame) {
  std::string text;
  for (std::size_t i = 0; i < frame.nb_ranges(); ++i) {
    const PageRange range = frame.range(i);
    text += fmt::format("{}{}", i == 0 ? "" : ", ", pages(range.first.value, range.nb_pages));
  }
  return text;
}

std::string of_wants(const wire::Frame& frame) {
  if (frame.nb_wants() == 0) return "asks for nothing, reports";
  std::string text = "asks for ";
  for (std::size_t i = 0; i < frame.nb_wants(); ++i) {
    const wire::WantEntry want = frame.want(i);
    text += fmt::format("{}{}", i == 0 ? "" : ", ", pages(want.first.host(), want.nb_pages.host()));
    if (want.fragments != 0) text += fmt::format(" (fragments {:#x})", want.fragments);
    if (want.priority != static_cast<std::uint8_t>(wire::Priority::kDemand)) text += " (prefetch)";
    if ((want.flags & wire::kWantRetry) != 0) text += " (again)";
  }
  return text;
}

std::string of_page(wire::Frame frame) {
  const std::uint64_t gfn = frame.page.gfn.host();
  if (frame.page.nb_fragments > 1)
    return fmt::format("page {} (fragment {} of {})", gfn, frame.page.fragment + 1,
                       frame.page.nb_fragments);
  if (!frame.next_page()) return fmt::format("page {}", gfn);
  return fmt::format("pages {} and {}", gfn, frame.page.gfn.host());
}

}  // namespace

std::string to_string(std::span<const std::byte> bytes) {
  wire::Frame frame;
  if (bytes.size() < sizeof(wire::EthHdr) ||
      wire::parse(bytes.subspan(sizeof(wire::EthHdr)), frame) != wire::Drop::kNone)
    return "a frame that cannot be read";
  switch (frame.type) {
    case wire::FrameType::kHello: return "says hello";
    case wire::FrameType::kWelcome: return "welcomes";
    case wire::FrameType::kRequest: return of_wants(frame);
    case wire::FrameType::kPage: return of_page(frame);
    case wire::FrameType::kZeros: return "zero: " + of_ranges(frame);
    case wire::FrameType::kAbsent: return "absent: " + of_ranges(frame);
    case wire::FrameType::kBye: return "says goodbye";
  }
  return "a frame of no known type";
}

}  // namespace snowfabric::sim
