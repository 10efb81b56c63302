// SPDX-License-Identifier: BSD-3-Clause
// Frames, faults and time steps of the fuzzer's choice into a server and a client engine that also
// talk to each other. Neither crashes or hangs, what they send is bounded and well formed, and no
// page number leaves the image.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "fabric/client_engine.hpp"
#include "fabric/crc32c.hpp"
#include "fabric/hash_tree.hpp"
#include "fabric/repairs.hpp"
#include "fabric/server_engine.hpp"
#include "tests/fuzz/fuzz_file.hpp"
#include "tests/fuzz/fuzz_frames.hpp"

namespace {

using namespace snowfabric;
using namespace snowfabric::fuzz;

constexpr std::uint64_t kPages = 200;
constexpr std::uint16_t kMtu = 1500, kJumboMtu = 9000;
constexpr std::uint32_t kMaxInflight = 16;
/// More than any engine may send without new input: every page queued twice in three fragments and
/// every control frame the server keeps.
constexpr unsigned kMostFrames = 2 * kPages * 3 + 2048;

const std::vector<std::uint32_t>& checksums() {
  static const std::vector<std::uint32_t> all(kPages, crc32c(Bytes(kPageSize)));
  return all;
}
constexpr std::array<std::uint64_t, 4> kZeros{0xff00, ~0ULL, 0x1, 0x80};

/// All zero but for one page: what the server has there is then an insider's.
constexpr std::uint64_t kOtherPage = 77;
const HashTree& tree() {
  static const HashTree made = [] {
    std::vector<Hash> hashes(kPages, hash_page(std::array<std::byte, kPageSize>{}, 0));
    hashes[kOtherPage].fill(std::byte{1});
    return HashTree::over(hashes);
  }();
  return made;
}

/// Of an image of nothing but zeros: what this host may hand on, some of it as zero pages.
class Shelf final : public RepairSource {
 public:
  [[nodiscard]] bool knows(Gfn page) const noexcept override {
    check(page.value < kPages);
    return page.value % 5 != 0;
  }
  [[nodiscard]] std::optional<std::span<const std::byte, kPageSize>> bytes(
      Gfn page) const noexcept override {
    if (page.value % 3 == 0) return std::nullopt;
    return std::span<const std::byte, kPageSize>{bytes_};
  }
  [[nodiscard]] PageRange zero_run(Gfn page) const noexcept override { return {page, 1}; }

 private:
  std::array<std::byte, kPageSize> bytes_{};
};

std::uint16_t mtu_of(std::uint8_t choice) { return (choice & 32U) != 0 ? kJumboMtu : kMtu; }

ServerConfig server_config(std::uint8_t choice) {
  ServerConfig config{.mtu_bytes = mtu_of(choice), .push = (choice & 1U) != 0, .max_clients = 3};
  config.end_game = {.enter = (choice & 2U) != 0 ? 0.1 : 0.9, .leave = 0.05};
  config.burst_bytes = (choice & 4U) != 0 ? 1U << 20U : 8192;
  return config;
}
ClientConfig client_config(std::uint8_t choice) {
  ClientConfig config;
  config.client_id = 1;
  config.image_id = kImageId;
  config.epoch = 1;
  config.mac = kClientMac;
  config.mtu_bytes = mtu_of(choice);
  config.max_inflight = kMaxInflight;
  config.partial_pages = (choice & 8U) != 0 ? 8 : 64;
  config.give_up = std::chrono::milliseconds{200};
  config.tree = (choice & 16U) != 0 ? &tree() : nullptr;
  return config;
}

class Bed {
 public:
  explicit Bed(std::uint8_t choice)
      : server_{server_config(choice), view_of(checksums(), kZeros), server_stats_},
        client_{client_config(choice), client_stats_},
        has_tree_{(choice & 16U) != 0},
        mtu_bytes_{mtu_of(choice)} {
    repairs_.serve(&shelf_);
  }

  void step(Input& in) {
    switch (in.byte() % 13) {
      case 0: now_ += std::chrono::microseconds{in.word()}; break;
      case 1: now_ += std::chrono::milliseconds{in.byte()}; break;
      case 2: talk(); break;
      case 3: to_server(in.take(in.word() % 1600)); break;
      case 4: to_client(in.take(in.word() % 1600)); break;
      case 5: to_server(dressed(in)); break;
      case 6: to_client(dressed(in)); break;
      case 7: fault(in.byte() % kPages, in.byte()); break;
      case 8: to_server(request(in)); break;
      case 9: to_client(page_or_pair(in, in.byte())); break;
      case 10: to_client(ranges(in)); break;
      case 11: to_client(welcome(in, kPages)); break;
      case 12: to_client(request(in, wire::kFlagSibling)); break;
    }
  }
  /// Both send what they want to; the other side gets it.
  void talk() {
    client_.expire(now_);
    check(client_.deadline(now_) >= now_);
    drain_client();
    drain_repairs();
    drain_server();
    check(server_.deadline(now_) >= now_);
    check(client_.nb_in_flight() <= kMaxInflight);
  }

 private:
  static Bytes page(Input& in) {
    const std::size_t nb_fragments = 1 + in.byte() % wire::kMaxFragments;
    const std::size_t fragment = in.byte() % nb_fragments;
    const std::uint32_t crc = in.byte() % 4 == 0 ? in.byte() : checksums()[0];
    const Gfn gfn{in.byte()};
    const std::uint8_t flags = in.byte();
    const std::uint32_t seq = in.word();
    const wire::Identity who = identity(in);
    return written([&](auto out) {
      return wire::write_page_header(out, who, kClientMac, kServerMac, gfn, crc, fragment,
                                     nb_fragments, flags, seq) +
             wire::fragment_bytes(fragment, nb_fragments);
    });
  }
  static Bytes page_or_pair(Input& in, std::uint8_t choice) {
    if ((choice & 1U) == 0) return page(in);
    const wire::PageKey first{Gfn{in.byte()}, checksums()[0]}, second{Gfn{in.byte()}, in.byte()};
    const wire::Identity who = identity(in);
    return written([&](auto out) {
      wire::write_pair_header(out, who, kClientMac, kServerMac, first, second, 0, 0);
      return out.size();
    });
  }
  void to_server(std::span<const std::byte> payload) {
    wire::Frame frame;
    if (wire::parse(payload, frame) == wire::Drop::kNone) server_.on_frame(frame, kClientMac, now_);
  }
  void to_client(std::span<const std::byte> payload) {
    wire::Frame frame;
    if (wire::parse(payload, frame) != wire::Drop::kNone) return;
    // A true WELCOME may name 2^32 pages, and the client allocates for them: not in a fuzzer.
    if (frame.type == wire::FrameType::kWelcome && frame.welcome.nb_pages.host() > 1U << 16U)
      return;
    if (client_.on_frame(frame, kServerMac, payload.size() + sizeof(wire::EthHdr), now_) !=
        wire::Drop::kNone)
      return;
    if (frame.type == wire::FrameType::kRequest) repairs_.on_request(frame, now_);
    if (frame.type == wire::FrameType::kPage) {
      do {
        repairs_.on_page(frame, now_);
        take_page(frame);
      } while (frame.next_page());
    }
    if (frame.type == wire::FrameType::kZeros || frame.type == wire::FrameType::kAbsent)
      for (std::size_t i = 0; i < frame.nb_ranges(); ++i) take_range(frame.type, frame.range(i));
  }
  void take_range(wire::FrameType type, PageRange range) {
    const std::uint32_t nb_believed = client_.nb_believed(type, range);
    check(nb_believed <= range.nb_pages);
    range.nb_pages = nb_believed;
    if (nb_believed == 0) return;
    const std::uint64_t end = range.first.value + range.nb_pages;
    check(!has_tree_ || kOtherPage < range.first.value || kOtherPage >= end);
    client_.take_range(type, range, now_);
  }
  void take_page(const wire::Frame& frame) {
    wire::Drop drop{};
    const auto arrival = client_.take_page(frame, now_, drop);
    if (!arrival) return;
    check(drop == wire::Drop::kNone && arrival->page.value < client_.nb_pages());
    check(crc32c(arrival->bytes) == frame.page.crc32c.host());
    check(!client_.in_flight(arrival->page));
    check(!has_tree_ || arrival->page.value != kOtherPage);
  }
  void fault(std::uint64_t page, std::uint8_t choice) {
    if (page >= client_.nb_pages()) return;
    const auto priority = (choice & 1U) != 0 ? wire::Priority::kPrefetch : wire::Priority::kDemand;
    if ((choice & 6U) == 6)
      client_.forget(Gfn{page});
    else if (client_.want(Gfn{page}, priority, now_))
      check(client_.in_flight(Gfn{page}));
  }

  void drain_client() {
    wire::ControlBuffer buffer;
    for (unsigned n = 0; const std::size_t size = client_.next(buffer, now_); ++n) {
      check(n < kMostFrames && size <= buffer.size());
      const auto payload = std::span{buffer}.first(size).subspan(sizeof(wire::EthHdr));
      wire::Frame frame;
      check(wire::parse(payload, frame) == wire::Drop::kNone);
      if (frame.type == wire::FrameType::kRequest)
        for (std::size_t i = 0; i < frame.nb_wants(); ++i)
          check(frame.want(i).first.host() + frame.want(i).nb_pages.host() <= client_.nb_pages());
      server_.on_frame(frame, kClientMac, now_);
    }
  }
  void drain_repairs() {
    Bytes frame(wire::kMaxFrameBytes);
    for (unsigned n = 0; const std::size_t size = repairs_.next(frame, now_); ++n) {
      check(n < 1);  // they are spaced
      check(size <= sizeof(wire::EthHdr) + std::max(mtu_bytes_, client_.server_mtu_bytes()));
      const auto payload = std::span{frame}.first(size).subspan(sizeof(wire::EthHdr));
      wire::Frame parsed;
      check(wire::parse(payload, parsed) == wire::Drop::kNone);
      check(parsed.flags == wire::kFlagSibling);
    }
  }
  void drain_server() {
    ServerTx tx;
    for (unsigned n = 0; server_.next(tx, now_); ++n) {
      check(n < kMostFrames);
      const std::uint64_t end = tx.range.first.value + tx.range.nb_pages;
      if (tx.type == wire::FrameType::kAbsent) check(tx.range.first.value >= kPages);
      if (tx.type == wire::FrameType::kPage || tx.type == wire::FrameType::kZeros)
        check(tx.range.nb_pages > 0 && end <= kPages);
      Bytes frame(wire::kMaxFrameBytes);
      std::size_t size = server_.write(tx, kServerMac, frame);
      if (tx.type == wire::FrameType::kPage)  // of an image of nothing but zeros
        size += (tx.second ? 2 : 1) * wire::fragment_bytes(tx.fragment, server_.nb_fragments());
      check(!tx.second || tx.second->value < kPages);
      check(size <= sizeof(wire::EthHdr) + mtu_bytes_);
      const auto payload = std::span{frame}.first(size).subspan(sizeof(wire::EthHdr));
      wire::Frame parsed;
      check(wire::parse(payload, parsed) == wire::Drop::kNone);
      to_client(payload);
    }
  }

  ServerStats server_stats_;
  ClientStats client_stats_;
  ServerEngine server_;
  ClientEngine client_;
  Shelf shelf_;
  Repairs repairs_{client_};
  bool has_tree_;
  std::uint16_t mtu_bytes_;
  Nanos now_{0};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in{std::as_bytes(std::span{data, size})};
  Bed bed{in.byte()};
  bed.talk();  // HELLO and WELCOME: what follows meets engines that know each other
  while (!in.empty()) bed.step(in);
  bed.talk();
  return 0;
}
