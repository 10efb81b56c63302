// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_bare.hpp"

#include <rte_cycles.h>

#include <algorithm>
#include <cstring>

#include "fabric/crc32c.hpp"

namespace snowfabric::bench {
namespace {

/// The image outlives its mbufs and frees nothing.
void keep_image(void*, void*) {}

double seconds_of(std::uint64_t cycles) noexcept {
  return static_cast<double>(cycles) / static_cast<double>(rte_get_tsc_hz());
}

}  // namespace

void drain(const Port& port) noexcept {
  EthPort queue = port.queue();
  std::array<rte_mbuf*, kBurst> burst;
  while (const std::uint16_t nb_rx = queue.rx_burst(burst))
    rte_pktmbuf_free_bulk(burst.data(), nb_rx);
}

// --- sender ----------------------------------------------------------------------------------

BareSender::BareSender(const Image& image, const Port& port, TxMode mode, double pages_per_s)
    : image_{image},
      port_{port},
      queue_{port.queue()},
      mode_{mode},
      pages_per_s_{pages_per_s},
      nb_fragments_{port.nb_fragments()},
      pairs_{port.mtu_bytes() >= wire::kPairMtuBytes},
      identity_{image.image_id(), image.epoch(), 1, 0},
      group_{group_address(image.image_id())} {
  extbuf_.free_cb = keep_image;
  rte_mbuf_ext_refcnt_set(&extbuf_, 1);  // ours: it never falls to 0
}

BareSender::~BareSender() { rte_pktmbuf_free_bulk(burst_.data(), nb_waiting_); }

void BareSender::run(const std::atomic<bool>& stop, const IdleConfig& idle_config) noexcept {
  Idle idle{idle_config};
  const std::uint64_t began = rte_rdtsc();
  while (!stop.load(std::memory_order_relaxed) && !done()) {
    const bool early = pages_per_s_ > 0 && static_cast<double>(next_page_) >
                                               seconds_of(rte_rdtsc() - began) * pages_per_s_;
    if ((nb_waiting_ != 0 || !early) && turn() != 0)
      idle.hit();
    else
      idle.miss();
  }
  seconds_ = seconds_of(rte_rdtsc() - began);
}

std::uint16_t BareSender::turn() noexcept {
  if (nb_waiting_ == 0) fill();
  const std::uint16_t nb_tx = queue_.tx_burst(std::span{burst_}.first(nb_waiting_));
  std::copy(burst_.begin() + nb_tx, burst_.begin() + nb_waiting_, burst_.begin());
  nb_waiting_ = static_cast<std::uint16_t>(nb_waiting_ - nb_tx);
  return nb_tx;
}

bool BareSender::done() const noexcept {
  return order_.empty() && next_page_ == image_.nb_pages() && nb_waiting_ == 0;
}

/// A burst of frames, as far as pages and mbufs go.
void BareSender::fill() noexcept {
  std::array<rte_mbuf*, 3 * kBurst> mbufs;
  const std::uint64_t nb_left =
      order_.empty() ? (image_.nb_pages() - next_page_) * nb_fragments_ - next_fragment_ : kBurst;
  const std::uint64_t a_frame = pairs_ ? 2 : 1;
  const auto nb_frames =
      static_cast<unsigned>(std::min<std::uint64_t>(kBurst, (nb_left + a_frame - 1) / a_frame));
  const auto nb_mbufs = static_cast<unsigned>(mode_ == TxMode::kZeroCopy ? 1 + a_frame : 1);
  if (nb_frames == 0 ||
      rte_pktmbuf_alloc_bulk(port_.pool(), mbufs.data(), nb_mbufs * nb_frames) != 0)
    return;
  for (unsigned i = 0; i < nb_frames; ++i) {
    const auto own = std::span{mbufs}.subspan(std::size_t{i} * nb_mbufs, nb_mbufs);
    burst_[i] = next_frame(own);
  }
  nb_waiting_ = static_cast<std::uint16_t>(nb_frames);
}

/// @param mbufs  for the header and, with zero copy, each page
rte_mbuf* BareSender::next_frame(std::span<rte_mbuf* const> mbufs) noexcept {
  rte_mbuf* const frame = mbufs[0];
  const bool pair = pairs_ && next_page_ + 1 < image_.nb_pages();  // order_ is empty then
  frame->data_len =
      static_cast<std::uint16_t>(write_header(rte_pktmbuf_mtod(frame, std::byte*), pair));
  frame->pkt_len = frame->data_len;
  const bool copies = mode_ == TxMode::kCopy;
  put_page(*frame, copies ? nullptr : mbufs[1]);
  if (pair)
    put_page(*frame, copies ? nullptr : mbufs[2]);
  else if (!copies && pairs_)
    rte_pktmbuf_free(mbufs[2]);
  return frame;
}

std::size_t BareSender::write_header(std::byte* out, bool pair) noexcept {
  const auto key = [this](Gfn gfn) { return wire::PageKey{gfn, image_.crc(gfn)}; };
  const Gfn gfn = next_gfn();
  if (!order_.empty()) prefetch_crc();
  if (pair)
    return wire::write_pair_header({out, wire::kPairHeaderBytes}, identity_, group_, port_.mac(),
                                   key(gfn), key(Gfn{gfn.value + 1}), wire::kFlagSequenced, seq_++);
  return wire::write_page_header({out, wire::kPageHeaderBytes}, identity_, group_, port_.mac(), gfn,
                                 image_.crc(gfn), next_fragment_, nb_fragments_,
                                 wire::kFlagSequenced, seq_++);
}

/// The next page, or fragment, behind what the frame has.
/// @param segment  for its bytes where they are; nullptr: they are copied
void BareSender::put_page(rte_mbuf& frame, rte_mbuf* segment) noexcept {
  const Gfn gfn = next_gfn();
  const std::size_t nb_bytes = wire::fragment_bytes(next_fragment_, nb_fragments_);
  const std::byte* data =
      image_.page(gfn).data() + next_fragment_ * wire::fragment_stride(nb_fragments_);
  if (segment == nullptr) {
    if (!order_.empty()) prefetch_next(gfn);
    std::memcpy(rte_pktmbuf_mtod_offset(&frame, std::byte*, frame.data_len), data, nb_bytes);
    frame.data_len = static_cast<std::uint16_t>(frame.data_len + nb_bytes);
  } else {
    rte_mbuf_ext_refcnt_update(&extbuf_, 1);
    auto* address = const_cast<std::byte*>(data);  // mapped read-only; the mbuf API has no const
    rte_pktmbuf_attach_extbuf(segment, address, reinterpret_cast<rte_iova_t>(address),
                              static_cast<std::uint16_t>(nb_bytes), &extbuf_);
    segment->data_off = 0;
    segment->data_len = static_cast<std::uint16_t>(nb_bytes);
    segment->pkt_len = segment->data_len;
    rte_pktmbuf_lastseg(&frame)->next = segment;
    ++frame.nb_segs;
  }
  frame.pkt_len += static_cast<std::uint32_t>(nb_bytes);
  if (++next_fragment_ == nb_fragments_) {
    next_fragment_ = 0;
    ++next_page_;
    if (++place_ == order_.size()) place_ = 0;
  }
}

/// As ServerWorker does, this too.
void BareSender::prefetch_crc() const noexcept {
  constexpr std::size_t kLookAhead = 8;
  const std::size_t ahead = place_ + kLookAhead;
  if (ahead < order_.size()) __builtin_prefetch(&image_.crcs()[order_[ahead]]);
}

/// As ServerWorker does, so that what is decided is all that differs.
void BareSender::prefetch_next(Gfn gfn) const noexcept {
  const std::size_t next = place_ + 1 == order_.size() ? 0 : place_ + 1;
  if (order_[next] != gfn.value + 1) image_.prefetch(Gfn{order_[next]});
}

// --- receiver --------------------------------------------------------------------------------

BareReceiver::BareReceiver(const Port& port, Arena& arena, std::size_t nb_fragments)
    : port_{port},
      queue_{port.queue()},
      arena_{arena},
      all_fragments_{static_cast<std::uint8_t>((1U << nb_fragments) - 1)} {}

void BareReceiver::run(const std::atomic<bool>& stop, const IdleConfig& idle_config,
                       Nanos silence) noexcept {
  const double silence_s = std::chrono::duration<double>(silence).count();
  const std::array wait_fds{port_.wait_fd()};
  Idle idle{idle_config};
  std::array<rte_mbuf*, kBurst> burst;
  while (nb_pages_ < arena_.nb_pages() && !stop.load(std::memory_order_relaxed)) {
    const std::uint16_t nb_rx = queue_.rx_burst(burst);
    if (nb_rx == 0) {
      if (first_at_ != 0 && seconds_of(rte_rdtsc() - last_at_) > silence_s) return;
      idle.miss(wait_fds);
      continue;
    }
    idle.hit();
    if (first_at_ == 0) first_at_ = rte_rdtsc();
    for (std::uint16_t i = 0; i < nb_rx; ++i) take(*burst[i]);
    rte_pktmbuf_free_bulk(burst.data(), nb_rx);
    last_at_ = rte_rdtsc();
  }
}

void BareReceiver::take(const rte_mbuf& frame) noexcept {
  // The header lies in the first segment; each page is copied once, to where it belongs.
  wire::EthHdr eth;
  wire::Header header;
  std::array<wire::PageBody, 2> bodies;
  const auto* bytes = rte_pktmbuf_mtod(&frame, const std::byte*);
  if (frame.data_len < wire::kPageHeaderBytes) {
    ++nb_foreign_;
    return;
  }
  std::memcpy(&eth, bytes, sizeof eth);
  std::memcpy(&header, bytes + sizeof eth, sizeof header);
  if (eth.type.host() != wire::kEtherType || header.magic.host() != wire::kMagic ||
      header.type != static_cast<std::uint8_t>(wire::FrameType::kPage)) {
    ++nb_foreign_;
    return;
  }
  const bool pair = header.payload_len.host() > wire::kMaxFrameBytes - wire::kPairHeaderBytes &&
                    frame.data_len >= wire::kPairHeaderBytes;
  const std::size_t nb_header = pair ? wire::kPairHeaderBytes : wire::kPageHeaderBytes;
  std::memcpy(bodies.data(), bytes + sizeof eth + sizeof header,
              nb_header - sizeof eth - sizeof header);
  take_page(frame, bodies[0], nb_header);
  if (pair) take_page(frame, bodies[1], nb_header + kPageSize);
}

/// @param offset  of its bytes in the frame
void BareReceiver::take_page(const rte_mbuf& frame, const wire::PageBody& body,
                             std::size_t offset) noexcept {
  const std::uint64_t page = body.gfn.host();
  if (page >= arena_.nb_pages() || body.nb_fragments > wire::kMaxFragments ||
      body.fragment >= body.nb_fragments) {
    ++nb_foreign_;
    return;
  }
  std::byte* const to = arena_.page(Gfn{page});
  copy_segments(frame, offset,
                {to + body.fragment * wire::fragment_stride(body.nb_fragments),
                 wire::fragment_bytes(body.fragment, body.nb_fragments)});
  if (page != current_page_) {
    current_page_ = page;
    have_ = 0;
  }
  have_ |= static_cast<std::uint8_t>(1U << body.fragment);
  if (have_ != all_fragments_) return;
  have_ = 0;
  (crc32c({to, kPageSize}) == body.crc32c.host() ? nb_pages_ : nb_bad_) += 1;
}

}  // namespace snowfabric::bench
