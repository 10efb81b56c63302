// SPDX-License-Identifier: BSD-3-Clause
// Any bytes behind an Ethernet header: parse() drops them, or yields a frame that lies within them
// and that the writers can make again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "fabric/wire.hpp"
#include "tests/unit/wire_encode.hpp"

namespace {

using namespace snowfabric;

void check(bool holds) {
  if (!holds) std::abort();  // libFuzzer keeps the input
}

void check_in_bounds(std::span<const std::byte> payload, const wire::Frame& frame) {
  if (frame.tail.empty()) return;
  check(frame.tail.data() >= payload.data());
  check(frame.tail.data() + frame.tail.size() <= payload.data() + payload.size());
  if (frame.type == wire::FrameType::kPage)
    check(frame.page.fragment * wire::fragment_stride(frame.page.nb_fragments) +
              frame.tail.size() <=
          kPageSize);
}

/// Made again, the frame has the same body; flags and seq survive where the type has them.
void check_round_trip(std::span<const std::byte> payload, const wire::Frame& frame) {
  const auto bytes = test::encode(frame, kBroadcast, MacAddr{});
  const auto again = std::span{bytes}.subspan(sizeof(wire::EthHdr));
  check(again.size() <= payload.size());
  wire::Frame second;
  check(wire::parse(again, second) == wire::Drop::kNone);
  check(second.type == frame.type && second.space == frame.space);
  check(second.image_id == frame.image_id && second.epoch == frame.epoch);
  check(second.incarnation == frame.incarnation && second.tail.size() == frame.tail.size());
  check(frame.tail.empty() ||
        std::memcmp(second.tail.data(), frame.tail.data(), frame.tail.size()) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto payload = std::as_bytes(std::span{data, size});
  wire::Frame frame;
  if (wire::parse(payload, frame) != wire::Drop::kNone) return 0;
  check_in_bounds(payload, frame);
  check_round_trip(payload, frame);
  if (frame.type == wire::FrameType::kPage && frame.next_page()) check_in_bounds(payload, frame);
  return 0;
}
