// SPDX-License-Identifier: BSD-3-Clause
// Any bytes that reach an end of `fabric-bench load`: what is taken for its own is within bounds,
// and is the same when it is written and read again.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "tests/fuzz/fuzz_file.hpp"
#include "tools/load_control.hpp"

namespace {

using namespace snowfabric;
using fuzz::check;

void check_bounds(const bench::LoadFrame& frame) {
  if (frame.type != bench::LoadType::kStart) return;
  check(frame.order.nb_pages.host() - 1 < bench::kMaxTrialPages);
  check(frame.order.nb_members.host() <= bench::kMaxLoadMembers);
  check(frame.order.millis.host() - 1 < bench::kMaxLoadMillis);
  check(frame.order.bytes_per_s.host() > 0);
  check(wire::fragments_for_mtu(frame.order.mtu_bytes.host()) > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bench::LoadFrame frame, again;
  if (bench::parse_load(std::as_bytes(std::span{data, size}), frame) != bench::LoadVerdict::kGood)
    return 0;
  check_bounds(frame);
  std::array<std::byte, bench::kLoadFrameBytes> bytes;
  bench::write_load(bytes, kBroadcast, MacAddr{}, frame);
  check(bench::parse_load(std::span{bytes}.subspan(sizeof(wire::EthHdr)), again) ==
        bench::LoadVerdict::kGood);
  check(again.type == frame.type && again.trial == frame.trial);
  check(std::memcmp(&again.order, &frame.order, sizeof frame.order) == 0);
  check(std::memcmp(&again.report, &frame.report, sizeof frame.report) == 0);
  return 0;
}
