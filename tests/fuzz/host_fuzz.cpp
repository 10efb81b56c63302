// SPDX-License-Identifier: BSD-3-Clause
// Frames, faults and time of the fuzzer's choice into a memtap's loop with two guests, whose server
// is an engine of ours that answers as far as it is let. Nothing but the image's bytes gets into a
// guest, and once server and guests behave, nobody waits any more.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fabric/client_engine.hpp"
#include "fabric/crc32c.hpp"
#include "fabric/hash_tree.hpp"
#include "fabric/server_engine.hpp"
#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/host_loop.hpp"
#include "memtap-dpdk/kept_image.hpp"
#include "tests/fuzz/fuzz_file.hpp"
#include "tests/fuzz/fuzz_frames.hpp"
#include "tests/unit/fake_guest.hpp"

namespace {

using namespace snowfabric;
using namespace snowfabric::fuzz;
using test::FakeGuest;
using PageBytes = std::span<const std::byte, kPageSize>;

constexpr std::uint64_t kPages = 70;  // not all of a word
constexpr std::uint32_t kMaxInflight = 16;
constexpr std::size_t kMaxPutOff = 32;  // installs in a row
constexpr unsigned kMostFrames = 2048;  // without new input: all pages and what else is kept
constexpr std::array<std::uint64_t, 2> kZeros{0xff00, 0x3};

bool is_zero(std::uint64_t page) { return (kZeros[page / 64] >> page % 64 & 1U) != 0; }

/// Each page differs in each word, so that no page, and no part, passes for another.
const Bytes& image() {
  static const Bytes made = [] {
    Bytes bytes(kPages * kPageSize);
    for (std::size_t at = 0; at < bytes.size(); at += sizeof at)
      if (!is_zero(at / kPageSize)) std::memcpy(bytes.data() + at, &at, sizeof at);
    return bytes;
  }();
  return made;
}
PageBytes true_page(std::uint64_t page) {
  return PageBytes{image().data() + page * kPageSize, kPageSize};
}
bool is_true(std::uint64_t page, std::span<const std::byte> bytes) {
  return bytes.size() == kPageSize &&
         std::memcmp(bytes.data(), true_page(page).data(), kPageSize) == 0;
}
const std::vector<std::uint32_t>& checksums() {
  static const std::vector<std::uint32_t> made = [] {
    std::vector<std::uint32_t> all;
    for (std::uint64_t page = 0; page < kPages; ++page) all.push_back(crc32c(true_page(page)));
    return all;
  }();
  return made;
}
const HashTree& tree() {
  static const HashTree made = [] {
    std::vector<Hash> hashes;
    for (std::uint64_t page = 0; page < kPages; ++page)
      hashes.push_back(hash_page(true_page(page), 0));
    return HashTree::over(hashes);
  }();
  return made;
}

/// The first byte of the input.
struct Choice {
  std::uint8_t bits;
  [[nodiscard]] bool tree() const { return (bits & 1U) != 0; }
  [[nodiscard]] bool keeps() const { return (bits & 2U) != 0; }
  [[nodiscard]] bool push() const { return (bits & 4U) != 0; }
  [[nodiscard]] std::uint16_t mtu_bytes() const { return (bits & 8U) != 0 ? 9000 : 1500; }
  [[nodiscard]] bool loads() const { return (bits & 16U) != 0; }
  [[nodiscard]] std::uint32_t prefetch_pages() const { return (bits & 32U) != 0 ? 8 : 0; }
};

ServerConfig server_config(Choice choice) {
  return {.mtu_bytes = choice.mtu_bytes(), .push = choice.push(), .burst_bytes = 1U << 20U};
}
ClientConfig client_config(Choice choice) {
  ClientConfig config;
  config.client_id = 1;
  config.image_id = kImageId;
  config.epoch = 1;
  config.mac = kClientMac;
  config.tree = choice.tree() ? &tree() : nullptr;
  config.mtu_bytes = choice.mtu_bytes();
  config.max_inflight = kMaxInflight;
  config.partial_pages = 8;
  config.repair_after = std::chrono::milliseconds{100};
  config.give_up = std::chrono::milliseconds{400};
  config.page_give_up = std::chrono::seconds{2};
  return config;
}

/// A guest, and what its vCPUs and memtap may do with it.
struct Guest {
  explicit Guest(bool loads) { fake.loads = loads; }

  /// Of what it has, only what is poisoned is not the image's.
  void check_page(std::uint64_t page) const {
    if (!fake.has(page) || std::ranges::find(fake.failed, page) != fake.failed.end()) return;
    check(is_true(page, fake.page(page)));
  }
  void check_all() const {
    for (std::uint64_t page = 0; page < kPages; ++page) check_page(page);
    check(fake.presence().count(PageState::kClaimedByMemtap) == 0);
  }
  void put_off(Install verdict) {
    if (fake.verdicts.size() < kMaxPutOff) fake.verdicts.push_back(verdict);
  }
  void behave() {
    fake.verdicts.clear();
    fake.fail_verdict = FailMeans::kPoisoned;
  }

  FakeGuest fake{kPages};
};

class Bed {
 public:
  explicit Bed(Choice choice)
      : choice_{choice},
        server_{server_config(choice), view_of(checksums(), kZeros), server_stats_},
        client_{client_config(choice), client_stats_} {
    turn(0);
    check(client_.nb_pages() == kPages);
    if (choice.keeps())
      if (auto kept = KeptImage::create({kImageId, kPages, 1})) kept_ = std::move(*kept);
    host_.emplace(client_, host_stats_, choice.prefetch_pages(), 4, kept_.get());
    loop_.serve(*host_, kept_.get());
    static constexpr std::array kWorkingSet{PageRange{Gfn{30}, 8}, PageRange{Gfn{10}, 4}};
    if (choice.loads()) host_->load(kWorkingSet, now_);
    for (Guest* guest : attached_) host_->attach(guest->fake);
  }

  void step(Input& in) {
    switch (in.byte() % 16) {
      case 0: now_ += std::chrono::microseconds{in.word()}; break;
      case 1: now_ += std::chrono::milliseconds{in.byte()}; break;
      case 2: turn(0); break;
      case 3: turn(in.byte()); break;
      case 4: guest(in).fake.touch(in.byte() % kPages); break;
      case 5: claim(guest(in), in.byte() % kPages); break;
      case 6: guest(in).put_off(in.byte() % 2 == 0 ? Install::kAgain : Install::kNoMemory); break;
      case 7:
        guest(in).fake.fail_verdict = in.byte() % 2 == 0 ? FailMeans::kAgain : FailMeans::kPoisoned;
        break;
      case 8: forged(in.take(in.word() % 1600)); break;
      case 9: forged(dressed(in)); break;
      case 10: to_host(page(in)); break;
      case 11: forged(ranges(in)); break;
      case 12: to_host(welcome(in, kPages)); break;
      case 13: to_host(request(in, wire::kFlagSibling)); break;
      case 14: in.byte() % 2 == 0 ? detach() : host_->complete(guest(in).fake); break;
      case 15: prefetch(in.byte(), in.byte()); break;
    }
  }

  /// From here on nothing is lost and nobody lies.
  void settle() {
    constexpr Nanos kPatience{std::chrono::seconds{30}};
    for (Guest* guest : attached_) guest->behave();
    for (const Nanos until = now_ + kPatience; now_ < until && !is_settled();
         now_ += std::chrono::milliseconds{2})
      turn(0);
    check(is_settled());
    for (const Guest* guest : attached_) guest->check_all();
    check_kept();
  }

 private:
  Guest& guest(Input& in) { return *attached_[in.byte() % attached_.size()]; }

  [[nodiscard]] bool is_settled() const {
    return std::ranges::none_of(attached_, [&](const Guest* guest) {
      return guest->fake.anybody_waits() || host_->completing(guest->fake);
    });
  }
  static void claim(Guest& guest, std::uint64_t page) {
    guest.check_page(page);
    guest.fake.claim(page);
  }
  void detach() {
    if (attached_.size() == 1) return;
    attached_.back()->check_all();
    host_->detach(attached_.back()->fake);
    attached_.pop_back();
  }
  void prefetch(std::uint8_t first, std::uint8_t nb_pages) {
    const PageRange range{Gfn{first}, nb_pages};
    if (nb_pages != 0) host_->prefetch({&range, 1});
  }

  /// One of the poll loop. @param lost  bits: the server's frames, in turns of eight, that are
  void turn(std::uint8_t lost) {
    loop_.ask(now_);
    check(loop_.deadline(now_) >= now_ && client_.nb_in_flight() <= kMaxInflight);
    drain_loop();
    drain_server(lost);
    loop_.idle(now_);
  }
  void drain_loop() {
    Bytes out(wire::kMaxFrameBytes);
    for (unsigned n = 0; const std::size_t size = loop_.next(out, now_); ++n) {
      check(n < kMostFrames && size <= sizeof(wire::EthHdr) + choice_.mtu_bytes());
      wire::Frame frame;
      check(wire::parse(std::span{out}.first(size).subspan(sizeof(wire::EthHdr)), frame) ==
            wire::Drop::kNone);
      if ((frame.flags & wire::kFlagSibling) == 0)
        server_.on_frame(frame, kClientMac, now_);
      else
        check_repair(frame);
    }
  }
  /// What siblings are given: parts of the image.
  static void check_repair(const wire::Frame& frame) {
    if (frame.type == wire::FrameType::kPage) {
      const std::size_t at = frame.page.fragment * wire::fragment_stride(frame.page.nb_fragments);
      const auto part = true_page(frame.page.gfn.host()).subspan(at, frame.tail.size());
      check(std::memcmp(frame.tail.data(), part.data(), part.size()) == 0);
    } else if (frame.type == wire::FrameType::kZeros) {
      const PageRange range = frame.range(0);
      for (std::uint64_t i = 0; i < range.nb_pages; ++i) check(is_zero(range.first.value + i));
    }
  }
  void drain_server(std::uint8_t lost) {
    ServerTx tx;
    for (unsigned n = 0; server_.next(tx, now_); ++n) {
      check(n < kMostFrames);
      Bytes frame(wire::kMaxFrameBytes);
      std::size_t size = server_.write(tx, kServerMac, frame);
      if (tx.type == wire::FrameType::kPage) {
        size += put(frame, size, tx.range.first, tx.fragment);
        if (tx.second) size += put(frame, size, *tx.second, 0);
      }
      if ((lost >> n % 8 & 1U) == 0)
        to_host(std::span{frame}.first(size).subspan(sizeof(wire::EthHdr)));
    }
  }
  std::size_t put(Bytes& frame, std::size_t at, Gfn page, std::size_t fragment) const {
    const auto part = true_page(page.value)
                          .subspan(fragment * wire::fragment_stride(server_.nb_fragments()),
                                   wire::fragment_bytes(fragment, server_.nb_fragments()));
    std::ranges::copy(part, frame.begin() + static_cast<std::ptrdiff_t>(at));
    return part.size();
  }

  void to_host(std::span<const std::byte> payload) {
    loop_.on_frame(kServerMac, payload, payload.size() + sizeof(wire::EthHdr), now_);
  }
  /// Without a tree an insider's pages are believed: not sent there.
  void forged(std::span<const std::byte> payload) {
    wire::Frame frame;
    if (!choice_.tree() && wire::parse(payload, frame) == wire::Drop::kNone &&
        (frame.type == wire::FrameType::kPage || frame.type == wire::FrameType::kZeros))
      return;
    to_host(payload);
  }
  /// A fragment with a checksum that is the page's, and bytes that are mostly.
  static Bytes page(Input& in) {
    const std::uint64_t gfn = in.byte() % kPages;
    const std::size_t nb_fragments = 1 + in.byte() % wire::kMaxFragments;
    const std::size_t fragment = in.byte() % nb_fragments;
    const std::uint8_t flags = in.byte();
    const std::uint32_t seq = in.word();
    const std::uint8_t damage = in.byte();
    const wire::Identity who = identity(in);
    return written([&](auto out) {
      const std::size_t head =
          wire::write_page_header(out, who, kClientMac, kServerMac, Gfn{gfn}, checksums()[gfn],
                                  fragment, nb_fragments, flags, seq);
      const auto part = true_page(gfn).subspan(fragment * wire::fragment_stride(nb_fragments),
                                               wire::fragment_bytes(fragment, nb_fragments));
      std::ranges::copy(part, out.begin() + static_cast<std::ptrdiff_t>(head));
      if (damage % 4 == 0) out[head + damage] ^= std::byte{1};
      return head + part.size();
    });
  }

  void check_kept() const {
    if (kept_ == nullptr) return;
    for (Gfn page{}; page.value < kPages; ++page.value) {
      if (kept_->has(page)) check(is_true(page.value, kept_->page(page)));
      if (kept_->is_zero(page)) check(is_zero(page.value));
    }
  }

  Choice choice_;
  ServerStats server_stats_;
  ClientStats client_stats_;
  HostStats host_stats_;
  ServerEngine server_;
  ClientEngine client_;
  HostLoop loop_{client_};
  std::unique_ptr<KeptImage> kept_;
  Guest a_{false}, b_{choice_.push()};
  std::vector<Guest*> attached_{&a_, &b_};
  std::optional<Host> host_;
  Nanos now_{0};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in{std::as_bytes(std::span{data, size})};
  Bed bed{Choice{in.byte()}};
  while (!in.empty()) bed.step(in);
  bed.settle();
  return 0;
}
