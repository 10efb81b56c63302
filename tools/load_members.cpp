// SPDX-License-Identifier: BSD-3-Clause
#include "tools/load_members.hpp"

#include <algorithm>

#include "fabric/base/prng.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::uint32_t kInFlight = 64;  // a member's tables: there are many of them

}  // namespace

LoadMembers::LoadMembers(std::uint32_t nb_members, std::uint64_t trial, std::uint16_t mtu_bytes,
                         const MacAddr& server, std::uint64_t seed) {
  Prng random{seed ^ trial};
  for (std::uint32_t i = 0; i < nb_members; ++i) {
    const ClientConfig config{.client_id = random.next() | 1U,
                              .image_id = trial,
                              .epoch = 1,
                              .mac = mac_of(i),
                              .server = server,
                              .mtu_bytes = mtu_bytes,
                              .seed = random.next(),
                              .max_inflight = kInFlight,
                              .partial_pages = kInFlight};
    members_.push_back(std::make_unique<LoadMember>(config));
  }
}

std::optional<std::uint32_t> LoadMembers::member_of(const MacAddr& mac) const noexcept {
  const auto member = static_cast<std::uint32_t>(mac.bytes[4] << 8U | mac.bytes[5]);
  if (member >= members_.size() || mac != mac_of(member)) return std::nullopt;
  return member;
}

wire::Drop LoadMembers::on_frame(const wire::Frame& frame, const MacAddr& dst, const MacAddr& src,
                                 std::size_t frame_bytes, Nanos now) {
  if (!dst.is_multicast()) {
    const auto member = member_of(dst);
    return member ? members_[*member]->engine.on_frame(frame, src, frame_bytes, now)
                  : wire::Drop::kForeignImage;
  }
  // The engine takes note of a server's other life, but that is none of this trial's.
  const auto is_of = [&frame](const auto& member) {
    return member->engine.identity().incarnation == frame.incarnation;
  };
  const bool counts = (frame.flags & wire::kFlagSequenced) != 0 &&
                      std::ranges::any_of(members_, is_of) && sequence_.is_new(frame.seq);
  wire::Drop first = members_.empty() ? wire::Drop::kForeignImage : wire::Drop::kNone;
  for (const auto& member : members_) {
    const wire::Drop why = member->engine.on_frame(frame, src, frame_bytes, now);
    if (why == wire::Drop::kNone && counts) ++member->nb_frames;
    if (first == wire::Drop::kNone) first = why;
  }
  return first;
}

std::size_t LoadMembers::next(std::span<std::byte> out, unsigned& nb_looked_at, bool drained,
                              Nanos now) {
  for (; nb_looked_at > 0 && !members_.empty(); --nb_looked_at) {
    ClientEngine& engine = members_[turn_]->engine;
    if (drained) engine.expire(now);
    if (const std::size_t size = engine.next(out, now); size != 0) return size;
    turn_ = (turn_ + 1) % members_.size();
  }
  return 0;
}

std::size_t LoadMembers::nb_joined() const noexcept {
  return static_cast<std::size_t>(std::ranges::count_if(
      members_, [](const auto& member) { return member->engine.state() == ClientState::kJoined; }));
}

bool LoadMembers::any_mtu_too_small() const noexcept {
  return std::ranges::any_of(members_, [](const auto& member) {
    return member->engine.state() == ClientState::kMtuTooSmall;
  });
}

}  // namespace snowfabric::bench
