// SPDX-License-Identifier: BSD-3-Clause
// Any frames to a member of a group of UDP endpoints: nothing but a datagram to it is taken, whose
// payload lies in the frame; and what it answers fits.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "library/ip_member.hpp"

namespace {

using namespace snowfabric;

constexpr ip::Neighbor kOwn{{{2, 0, 0, 0, 0, 1}}, {0x0A350001}};
constexpr ip::Address kGroup{0xEFC232F6};

void check(bool holds) {
  if (!holds) std::abort();  // libFuzzer keeps the input
}

}  // namespace

/// Input: the side, then frames, each behind two bytes of its length.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  auto input = std::as_bytes(std::span{data, size});
  IpMember member{{.own = kOwn,
                   .group = kGroup,
                   .port = 21318,
                   .side = data[0] % 2 == 0 ? Side::kServer : Side::kClient,
                   .image_id = 1}};
  input = input.subspan(1);
  Nanos now{0};
  while (input.size() > 2) {
    const std::size_t length =
        std::to_integer<std::size_t>(input[0]) * 256 + std::to_integer<std::size_t>(input[1]);
    const auto frame = input.subspan(2, std::min(length, input.size() - 2));
    input = input.subspan(2 + frame.size());
    wire::EthHdr eth;
    if (frame.size() < sizeof eth) continue;
    std::memcpy(&eth, frame.data(), sizeof eth);
    const auto packet = frame.subspan(sizeof eth);
    if (const auto taken = member.take(eth, packet)) {
      check(eth.type.host() == ip::kIpv4EtherType && !eth.src.is_multicast());
      check(taken->payload.size() + ip::kHeaderBytes <= packet.size());
      if (!taken->payload.empty())
        check(taken->payload.data() >= packet.data() &&
              taken->payload.data() + taken->payload.size() <= packet.data() + packet.size());
      std::array<std::byte, ip::kHeaderBytes + sizeof eth> answer{};
      const wire::EthHdr to{.dst = taken->src, .src = member.member(), .type = wire::kEtherType};
      std::memcpy(answer.data() + ip::kHeaderBytes, &to, sizeof to);
      member.wrap(answer, sizeof to);
      std::memcpy(&eth, answer.data(), sizeof eth);
      wire::EthHdr from;
      std::memcpy(&from, frame.data(), sizeof from);
      check(eth.dst == from.src);
    }
    now += std::chrono::seconds{1};
    std::array<std::byte, 64> out{};
    for (std::size_t nb_bytes = 1; nb_bytes != 0;) {
      nb_bytes = member.next_answer(out, now);
      check(nb_bytes == 0 || nb_bytes == ip::kArpFrameBytes || nb_bytes == ip::kIgmpFrameBytes);
    }
  }
  return 0;
}
