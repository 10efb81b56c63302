// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "fabric/base/endian.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/time.hpp"
#include "fabric/wire.hpp"

/// What the two ends of `fabric-bench load` say to each other through the device under test: the
/// members' end asks, the server's answers each frame with its state. Every question may come
/// twice, so it is asked until it is answered. docs/performance.md, "A load generator".
namespace snowfabric::bench {

inline constexpr std::uint16_t kLoadMagic = 0x534c;  ///< "SL", where the fabric has "SF"
inline constexpr std::uint8_t kLoadVersion = 1;
inline constexpr std::uint32_t kMaxLoadPages = 1U << 22U;  ///< of a trace's image
/// Of a trial's image: 15 bytes each at the server's end.
inline constexpr std::uint32_t kMaxTrialPages = 1U << 25U;
inline constexpr std::uint32_t kMaxLoadMembers = 1000;
inline constexpr std::uint32_t kMaxLoadMillis = 3'600'000;

enum class LoadType : std::uint8_t {
  kStart = 1,  ///< members: make ready for this trial
  kGo = 2,     ///< members: send now
  kAsk = 3,    ///< members: how far are you?
  kState = 4,  ///< server: the answer to each
};

enum class LoadKind : std::uint8_t {
  kBare = 1,        ///< the same frames at the same rate, and no protocol
  kThroughput = 2,  ///< ServerEngine pushes to members
  kReplay = 3,      ///< it sends what members ask for, at most at this rate
  kJoin = 4,        ///< it pushes while there are members, who come and go
};

enum class LoadState : std::uint8_t { kUnknown = 0, kReady = 1, kRunning = 2, kDone = 3 };

// As in fabric/wire.hpp every field has alignment 1.
struct LoadHdr {
  Be16 magic;            //  0  kLoadMagic
  std::uint8_t version;  //  2  kLoadVersion
  std::uint8_t type;     //  3  LoadType
  Be64 trial;            //  4  drawn for each; also its image id
};
struct LoadOrder {
  std::uint8_t kind;         //  0  LoadKind
  std::uint8_t reserved[3];  //  1
  Be32 millis;               //  4  how long to send, 1 .. kMaxLoadMillis
  Be64 bytes_per_s;          //  8  offered, of whole frames; not 0
  Be32 nb_pages;             // 16  of the image, 1 .. kMaxTrialPages: no more are pushed
  Be32 nb_members;           // 20  0 .. kMaxLoadMembers
  Be16 mtu_bytes;            // 24  of the members' port
  Be16 reserved_too;         // 26
  Be64 reserved_last;        // 28
};
struct LoadReport {
  std::uint8_t state;    //  0  LoadState
  std::uint8_t answers;  //  1  LoadType of the question
  Be16 mtu_bytes;        //  2  of the server's port
  Be64 nb_frames;        //  4  multicast page frames sent in this trial
  Be64 nb_bytes;         // 12  in these
  Be64 nanos;            // 20  that it took
  Be64 nb_tx_bytes;      // 28  in all frames but those of this header
};
static_assert(sizeof(LoadHdr) == 12 && sizeof(LoadOrder) == 36 && sizeof(LoadReport) == 36 &&
              alignof(LoadOrder) == 1 && alignof(LoadReport) == 1);
inline constexpr std::size_t kLoadFrameBytes =
    sizeof(wire::EthHdr) + sizeof(LoadHdr) + sizeof(LoadOrder);

/// kStart has the order, kState the report; the others have neither.
struct LoadFrame {
  LoadType type{};
  std::uint64_t trial = 0;
  LoadOrder order{};
  LoadReport report{};
};

/// Of an image that lasts so long at a rate.
/// @return at most kMaxTrialPages, which may last less
[[nodiscard]] inline std::uint32_t pages_for(double bytes_per_s, Nanos length) noexcept {
  constexpr double kSpare = 1.2;
  const double seconds = std::chrono::duration<double>(length).count();
  const double pages = bytes_per_s * seconds / static_cast<double>(kPageSize) * kSpare + 1024;
  return static_cast<std::uint32_t>(std::min(pages, static_cast<double>(kMaxTrialPages)));
}

enum class LoadVerdict : std::uint8_t { kGood, kForeign, kBad };

[[nodiscard]] inline bool is_sane(const LoadOrder& order) noexcept {
  const auto between = [](std::uint32_t value, std::uint32_t least, std::uint32_t most) {
    return value >= least && value <= most;
  };
  return between(order.kind, 1, static_cast<std::uint8_t>(LoadKind::kJoin)) &&
         between(order.millis.host(), 1, kMaxLoadMillis) && order.bytes_per_s.host() != 0 &&
         between(order.nb_pages.host(), 1, kMaxTrialPages) &&
         between(order.nb_members.host(), 0, kMaxLoadMembers) &&
         wire::fragments_for_mtu(order.mtu_bytes.host()) != 0;
}

[[nodiscard]] inline bool is_sane(const LoadReport& report) noexcept {
  return report.state <= static_cast<std::uint8_t>(LoadState::kDone) && report.answers >= 1 &&
         report.answers < static_cast<std::uint8_t>(LoadType::kState);
}

/// @param l2_payload  what follows an Ethernet header of wire::kEtherType; padding is ignored
/// @return kForeign: none of ours, the fabric's perhaps; kBad: ours, but not as it must be
[[nodiscard]] inline LoadVerdict parse_load(std::span<const std::byte> l2_payload,
                                            LoadFrame& out) noexcept {
  LoadHdr header;
  if (l2_payload.size() < sizeof header) return LoadVerdict::kForeign;
  std::memcpy(&header, l2_payload.data(), sizeof header);
  if (header.magic.host() != kLoadMagic) return LoadVerdict::kForeign;
  const bool known = header.type >= static_cast<std::uint8_t>(LoadType::kStart) &&
                     header.type <= static_cast<std::uint8_t>(LoadType::kState);
  if (header.version != kLoadVersion || !known) return LoadVerdict::kBad;
  LoadFrame frame{.type = static_cast<LoadType>(header.type), .trial = header.trial.host()};
  const auto body = l2_payload.subspan(sizeof header);
  if (body.size() < sizeof(LoadOrder)) return LoadVerdict::kBad;
  if (frame.type == LoadType::kStart) {
    std::memcpy(&frame.order, body.data(), sizeof frame.order);
    if (!is_sane(frame.order)) return LoadVerdict::kBad;
  } else if (frame.type == LoadType::kState) {
    std::memcpy(&frame.report, body.data(), sizeof frame.report);
    if (!is_sane(frame.report)) return LoadVerdict::kBad;
  }
  out = frame;
  return LoadVerdict::kGood;
}

/// @param out  room for kLoadFrameBytes, which is what every frame has
inline void write_load(std::span<std::byte> out, const MacAddr& dst, const MacAddr& src,
                       const LoadFrame& frame) noexcept {
  const wire::EthHdr eth{dst, src, wire::kEtherType};
  const LoadHdr header{kLoadMagic, kLoadVersion, static_cast<std::uint8_t>(frame.type),
                       frame.trial};
  std::memset(out.data(), 0, kLoadFrameBytes);
  std::memcpy(out.data(), &eth, sizeof eth);
  std::memcpy(out.data() + sizeof eth, &header, sizeof header);
  std::byte* const body = out.data() + sizeof eth + sizeof header;
  if (frame.type == LoadType::kStart) std::memcpy(body, &frame.order, sizeof frame.order);
  if (frame.type == LoadType::kState) std::memcpy(body, &frame.report, sizeof frame.report);
}

}  // namespace snowfabric::bench
