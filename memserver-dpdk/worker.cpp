// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/worker.hpp"

#include <algorithm>
#include <cstring>

#include "fabric/poll_loop.hpp"
#include "fabric/seal_mbuf.hpp"

namespace snowfabric {
namespace {

/// Frames the tail may hold before engines are asked for more: a burst in the ring, one behind it.
constexpr std::size_t kTailFrames = 2 * kBurst;
/// Frames between one that is looked at and one whose page is asked for.
constexpr std::uint16_t kLookAhead = 4;

ImageView view_of(const Image& image) {
  return {.image_id = image.image_id(),
          .epoch = image.epoch(),
          .space = image.space(),
          .nb_pages = image.nb_pages(),
          .crc32c = image.crcs(),
          .zero_words = image.zero_words()};
}

/// The image outlives its mbufs and frees nothing.
void keep_image(void*, void*) {}

}  // namespace

Served::Served(Image&& frozen, const ServerConfig& config)
    : image{std::move(frozen)}, engine{config, view_of(image), stats} {
  extbuf.free_cb = keep_image;
  rte_mbuf_ext_refcnt_set(&extbuf, 1);  // ours: it never falls to 0
}

ServerWorker::ServerWorker(std::span<const std::unique_ptr<Served>> served, const Port& port,
                           TxMode mode, double rx_loss, std::uint64_t seed, Seal* seal)
    : served_{served}, port_{port}, queue_{port.queue(), rx_loss, seed}, mode_{mode}, seal_{seal} {
  RTE_VERIFY(seal == nullptr || mode == TxMode::kCopy);
}

ServerWorker::~ServerWorker() { free_stock(); }

void ServerWorker::run(const std::atomic<bool>& stop, const IdleConfig& idle_config) noexcept {
  Idle idle{idle_config};
  const std::array wait_fds{port_.wait_fd()};
  run_lcore(
      [this](Nanos now) { return turn(now); }, [this](Nanos now) { return deadline(now); },
      [this](bool sleeps) { sleeps ? port_.arm_rx_interrupt() : port_.disarm_rx_interrupt(); },
      wait_fds, idle, stop);
  say_bye();
}

unsigned ServerWorker::turn(Nanos now) noexcept { return receive(now) + send(now); }

// --- receive ---------------------------------------------------------------------------------

unsigned ServerWorker::receive(Nanos now) noexcept {
  std::array<rte_mbuf*, kBurst> burst;
  const std::uint16_t nb_rx = queue_.rx_burst(burst);
  for (std::uint16_t i = 0; i < nb_rx; ++i) {
    if (i + kLookAhead < nb_rx) prefetch_wanted(*burst[i + kLookAhead]);
    on_frame(*burst[i], now);
  }
  rte_pktmbuf_free_bulk(burst.data(), nb_rx);
  stats_.rx_injected_loss.set(queue_.rx_lost().read());
  return nb_rx;
}

/// What a REQUEST asks for first, should it be one. No cache holds what is known of all pages of an
/// image, and waiting for memory takes longer than all else there is to do. Of a sealed frame, and
/// of one for another image, it is a page that nobody wants: as good as none.
void ServerWorker::prefetch_wanted(const rte_mbuf& mbuf) const noexcept {
  constexpr std::size_t kWants =
      sizeof(wire::EthHdr) + sizeof(wire::Header) + sizeof(wire::RequestBody);
  wire::WantEntry want;
  if (served_.empty() || mbuf.data_len < kWants + sizeof want) return;
  std::memcpy(&want, rte_pktmbuf_mtod_offset(&mbuf, const std::byte*, kWants), sizeof want);
  served_.front()->engine.prefetch(Gfn{want.first.host()});
}

void ServerWorker::on_frame(const rte_mbuf& mbuf, Nanos now) noexcept {
  wire::EthHdr eth;
  if (!read_eth(mbuf, eth) || eth.type.host() != wire::kEtherType || eth.src.is_multicast()) {
    stats_.rx_foreign_ethertype.add(1);
    return;
  }
  stats_.rx_frames.add(1);
  std::span<const std::byte> payload = gather(mbuf, gather_);
  wire::Frame frame;
  wire::Drop why =
      seal_ == nullptr ? wire::Drop::kNone : seal_->open(eth, payload, opened_, payload);
  if (why == wire::Drop::kNone) why = wire::parse(payload, frame);
  if (why == wire::Drop::kNone) {
    Served* const served = served_by(frame);
    why = served == nullptr ? wire::Drop::kForeignImage
                            : served->engine.on_frame(frame, eth.src, now);
  }
  if (why != wire::Drop::kNone) [[unlikely]]
    drops_.count(why);
  else if (seal_ != nullptr)
    seal_->remember_sender();
}

/// Of a page space that the image has not, the engine of another says so.
Served* ServerWorker::served_by(const wire::Frame& frame) const noexcept {
  Served* found = nullptr;
  for (const auto& served : served_) {
    if (served->image.image_id() != frame.image_id) continue;
    found = served.get();
    if (served->image.space() == frame.space) break;
  }
  return found;
}

// --- send ------------------------------------------------------------------------------------

unsigned ServerWorker::send(Nanos now) noexcept {
  std::size_t nb_idle = 0;
  while (nb_idle < served_.size() && tail_.size() < kTailFrames) {  // one frame of each in turn
    nb_idle = send_one(*served_[next_image_], now) ? 0 : nb_idle + 1;
    next_image_ = (next_image_ + 1) % served_.size();
  }
  const std::uint16_t nb_tx = tail_.flush(queue_);
  stats_.tx_back_pressure.set(tail_.back_pressure().read());
  return nb_tx;
}

bool ServerWorker::send_one(Served& served, Nanos now) noexcept {
  if (!have_mbufs()) {
    stats_.tx_no_mbuf.add(1);
    return false;
  }
  ServerTx tx;
  if (!served.engine.next(tx, now)) return false;
  enqueue(served, tx);
  return true;
}

/// What the next frame takes, its page segments included, before an engine decides on it.
bool ServerWorker::have_mbufs() noexcept {
  const std::size_t nb_needed = mode_ == TxMode::kZeroCopy ? 3 : 1;
  if (stock_.size() - next_mbuf_ >= nb_needed) return true;
  free_stock();
  if (rte_pktmbuf_alloc_bulk(port_.pool(), stock_.data(), kBurst) != 0) return false;
  next_mbuf_ = 0;
  return true;
}

rte_mbuf* ServerWorker::take_mbuf() noexcept {
  rte_mbuf* const mbuf = stock_[next_mbuf_++];
  if (next_mbuf_ == stock_.size()) return mbuf;
  const auto* next = rte_pktmbuf_mtod(stock_[next_mbuf_], const std::byte*);
  __builtin_prefetch(next, 1);  // where the next header goes: its reader was another core
  __builtin_prefetch(next + RTE_CACHE_LINE_SIZE, 1);
  return mbuf;
}

void ServerWorker::free_stock() noexcept {
  rte_pktmbuf_free_bulk(stock_.data() + next_mbuf_,
                        static_cast<unsigned>(stock_.size() - next_mbuf_));
  next_mbuf_ = stock_.size();
}

void ServerWorker::enqueue(Served& served, const ServerTx& tx) noexcept {
  rte_mbuf* mbuf = take_mbuf();
  std::span<std::byte> room{rte_pktmbuf_mtod(mbuf, std::byte*), rte_pktmbuf_tailroom(mbuf)};
  const std::size_t size = served.engine.write(tx, port_.mac(), room);
  mbuf->data_len = static_cast<std::uint16_t>(size);
  mbuf->pkt_len = mbuf->data_len;
  if (tx.type == wire::FrameType::kPage) attach_pages(served, tx, *mbuf);
  if (seal_ != nullptr) seal_mbuf(*seal_, *mbuf);
  stats_.tx_frames.add(1);
  stats_.tx_bytes.add(mbuf->pkt_len);
  RTE_VERIFY(tail_.push(mbuf));  // send() leaves room
}

void ServerWorker::attach_pages(Served& served, const ServerTx& tx, rte_mbuf& frame) noexcept {
  const std::size_t nb_fragments = served.engine.nb_fragments();
  const std::size_t offset = tx.fragment * wire::fragment_stride(nb_fragments);
  const std::size_t nb_bytes = wire::fragment_bytes(tx.fragment, nb_fragments);
  const auto attach = [&](Gfn page, std::optional<Gfn> next) noexcept {
    if (mode_ == TxMode::kZeroCopy) {
      attach_page(served, page, offset, nb_bytes, frame);
      return;
    }
    // A neighbour's bytes the CPU fetches ahead without being asked.
    if (next && next->value != page.value + 1) served.image.prefetch(*next);
    copy_page(served, page, offset, nb_bytes, frame);
  };
  attach(tx.range.first, tx.second ? tx.second : served.engine.upcoming());
  if (tx.second) attach(*tx.second, served.engine.upcoming());
}

void ServerWorker::copy_page(const Served& served, Gfn page, std::size_t offset,
                             std::size_t nb_bytes, rte_mbuf& frame) noexcept {
  served.image.copy(page, offset,
                    {rte_pktmbuf_mtod_offset(&frame, std::byte*, frame.data_len), nb_bytes});
  frame.data_len = static_cast<std::uint16_t>(frame.data_len + nb_bytes);
  frame.pkt_len += static_cast<std::uint32_t>(nb_bytes);
}

void ServerWorker::attach_page(Served& served, Gfn page, std::size_t offset, std::size_t nb_bytes,
                               rte_mbuf& frame) noexcept {
  rte_mbuf* segment = take_mbuf();
  rte_mbuf_ext_refcnt_update(&served.extbuf, 1);
  // The image is mapped read-only and TX only reads; the mbuf API has no const.
  auto* address = const_cast<std::byte*>(served.image.page(page).data() + offset);
  rte_pktmbuf_attach_extbuf(segment, address, reinterpret_cast<rte_iova_t>(address),
                            static_cast<std::uint16_t>(nb_bytes), &served.extbuf);
  segment->data_off = 0;
  segment->data_len = static_cast<std::uint16_t>(nb_bytes);
  segment->pkt_len = segment->data_len;
  rte_pktmbuf_lastseg(&frame)->next = segment;
  ++frame.nb_segs;
  frame.pkt_len += static_cast<std::uint32_t>(nb_bytes);
}

void ServerWorker::say_bye() noexcept {
  for (const auto& served : served_)
    if (served->engine.has_clients() && have_mbufs() && tail_.room() > 0)
      enqueue(*served, served->engine.bye());
  tail_.flush(queue_);
}

Nanos ServerWorker::deadline(Nanos now) const noexcept {
  if (tail_.size() != 0) return now;
  Nanos next = now + Idle::kLongestSleep;
  for (const auto& served : served_) next = std::min(next, served->engine.deadline(now));
  return next;
}

}  // namespace snowfabric
