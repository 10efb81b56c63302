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
  std::array<rte_mbuf*, 2 * kBurst> mbufs;
  const std::uint64_t nb_left =
      order_.empty() ? (image_.nb_pages() - next_page_) * nb_fragments_ - next_fragment_ : kBurst;
  const auto nb_frames = static_cast<unsigned>(std::min<std::uint64_t>(kBurst, nb_left));
  const unsigned nb_mbufs = mode_ == TxMode::kZeroCopy ? 2 * nb_frames : nb_frames;
  if (nb_frames == 0 || rte_pktmbuf_alloc_bulk(port_.pool(), mbufs.data(), nb_mbufs) != 0) return;
  for (unsigned i = 0; i < nb_frames; ++i)
    burst_[i] = next_frame(mbufs[i], mode_ == TxMode::kZeroCopy ? mbufs[nb_frames + i] : nullptr);
  nb_waiting_ = static_cast<std::uint16_t>(nb_frames);
}

rte_mbuf* BareSender::next_frame(rte_mbuf* header, rte_mbuf* page) noexcept {
  const Gfn gfn{order_.empty() ? next_page_ : order_[place_]};
  auto* out = rte_pktmbuf_mtod(header, std::byte*);
  const std::size_t nb_header = wire::write_page_header(
      {out, wire::kPageHeaderBytes}, identity_, group_, port_.mac(), gfn, image_.crc(gfn),
      next_fragment_, nb_fragments_, wire::kFlagSequenced, seq_++);
  const std::size_t nb_bytes = wire::fragment_bytes(next_fragment_, nb_fragments_);
  const std::byte* data =
      image_.page(gfn).data() + next_fragment_ * wire::fragment_stride(nb_fragments_);
  header->data_len = static_cast<std::uint16_t>(nb_header);
  if (page == nullptr) {
    if (!order_.empty()) prefetch_next(gfn);
    std::memcpy(out + nb_header, data, nb_bytes);
    header->data_len = static_cast<std::uint16_t>(nb_header + nb_bytes);
  } else {
    rte_mbuf_ext_refcnt_update(&extbuf_, 1);
    auto* address = const_cast<std::byte*>(data);  // mapped read-only; the mbuf API has no const
    rte_pktmbuf_attach_extbuf(page, address, reinterpret_cast<rte_iova_t>(address),
                              static_cast<std::uint16_t>(nb_bytes), &extbuf_);
    page->data_off = 0;
    page->data_len = static_cast<std::uint16_t>(nb_bytes);
    page->pkt_len = page->data_len;
    header->next = page;
    header->nb_segs = 2;
  }
  header->pkt_len = static_cast<std::uint32_t>(nb_header + nb_bytes);
  if (++next_fragment_ == nb_fragments_) {
    next_fragment_ = 0;
    ++next_page_;
    if (++place_ == order_.size()) place_ = 0;
  }
  return header;
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
  // The header lies in the first segment; the page is copied once, to where it belongs.
  std::array<std::byte, wire::kPageHeaderBytes> bytes;
  wire::EthHdr eth;
  wire::Header header;
  wire::PageBody body;
  if (frame.data_len < bytes.size()) {
    ++nb_foreign_;
    return;
  }
  std::memcpy(bytes.data(), rte_pktmbuf_mtod(&frame, const std::byte*), bytes.size());
  std::memcpy(&eth, bytes.data(), sizeof eth);
  std::memcpy(&header, bytes.data() + sizeof eth, sizeof header);
  std::memcpy(&body, bytes.data() + sizeof eth + sizeof header, sizeof body);
  const std::uint64_t page = body.gfn.host();
  if (eth.type.host() != wire::kEtherType || header.magic.host() != wire::kMagic ||
      header.type != static_cast<std::uint8_t>(wire::FrameType::kPage) ||
      page >= arena_.nb_pages() || body.nb_fragments > wire::kMaxFragments ||
      body.fragment >= body.nb_fragments) {
    ++nb_foreign_;
    return;
  }
  std::byte* const to = arena_.page(Gfn{page});
  const std::size_t nb_bytes = wire::fragment_bytes(body.fragment, body.nb_fragments);
  copy_segments(frame, bytes.size(),
                {to + body.fragment * wire::fragment_stride(body.nb_fragments), nb_bytes});
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
