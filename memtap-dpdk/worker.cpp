// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/worker.hpp"

#include <algorithm>
#include <utility>

#include "fabric/poll_loop.hpp"
#include "fabric/seal_mbuf.hpp"

namespace snowfabric {

namespace {
constexpr unsigned kMaxRxBursts = 16;  // a turn
constexpr unsigned kMaxUndrained =
    32;  // turns: an ingress that never ends must not mute the guests
constexpr Nanos kBusyFor{std::chrono::milliseconds{100}};  // after a frame or a fault
}  // namespace

ClientWorker::ClientWorker(ClientEngine& engine, const Port& port, double rx_loss,
                           std::uint64_t seed, Seal* seal)
    : engine_{engine},
      loop_{engine},
      port_{port},
      queue_{port.queue(), rx_loss, seed},
      seal_{seal},
      wait_fds_{port.wait_fd(), -1} {}

void ClientWorker::serve(Host& host, int guest_fd, const RepairSource* for_siblings) noexcept {
  loop_.serve(host, for_siblings);
  wait_fds_[1] = guest_fd;
}

void ClientWorker::run(const std::atomic<bool>& stop, const IdleConfig& idle_config,
                       const Control& control) noexcept {
  Idle idle{idle_config};
  const auto one_turn = [&](Nanos now) {
    // What woke us may be for control: its descriptors are among those waited on.
    if (std::exchange(slept_, false))
      next_control_ = std::min(next_control_, now + kControlInterval);
    if (now >= next_control_) {
      control(now);
      const bool quiet = now >= busy_until_ && loop_.quiet();
      next_control_ = now + (quiet ? kQuietInterval : kControlInterval);
    }
    return turn(now);
  };
  const auto deadline = [this](Nanos now) {
    return tail_.size() != 0 ? now : std::min(loop_.deadline(now), next_control_);
  };
  const auto sleeping = [this](bool sleeps) {
    sleeps ? port_.arm_rx_interrupt() : port_.disarm_rx_interrupt();
    slept_ = true;
  };
  run_lcore(one_turn, deadline, sleeping, wait_fds_, idle, stop);
  say_bye();
}

unsigned ClientWorker::turn(Nanos now) noexcept {
  unsigned nb_done = 0;
  bool drained = false;
  for (unsigned i = 0; i < kMaxRxBursts && !drained; ++i) {
    const unsigned nb_rx = receive(now);
    nb_done += nb_rx;
    drained = nb_rx < kBurst;
  }
  // What may lead to requests waits until the receive ring is empty, though not for ever: on a
  // starved host it holds the very pages that would be asked for.
  if (drained || ++nb_undrained_ == kMaxUndrained) {
    nb_done += loop_.ask(now);
    nb_undrained_ = 0;
  }
  if (nb_done == 0)
    loop_.idle(now);
  else
    busy_until_ = now + kBusyFor;
  return nb_done + send(now);
}

// --- receive ---------------------------------------------------------------------------------

unsigned ClientWorker::receive(Nanos now) noexcept {
  std::array<rte_mbuf*, kBurst> burst;
  const std::uint16_t nb_rx = queue_.rx_burst(burst);
  prefetch_mbufs({burst.data(), nb_rx});
  for (std::uint16_t i = 0; i < nb_rx; ++i) {
    if (i + 1 < nb_rx) prefetch_frame(*burst[i + 1]);
    on_frame(*burst[i], now);
  }
  rte_pktmbuf_free_bulk(burst.data(), nb_rx);
  stats_.rx_injected_loss.set(queue_.rx_lost().read());
  return nb_rx;
}

void ClientWorker::on_frame(const rte_mbuf& mbuf, Nanos now) noexcept {
  wire::EthHdr eth;
  if (!read_eth(mbuf, eth) || eth.type.host() != wire::kEtherType || eth.src.is_multicast()) {
    stats_.rx_foreign_ethertype.add(1);
    return;
  }
  stats_.rx_frames.add(1);
  stats_.rx_bytes.add(mbuf.pkt_len);
  std::span<const std::byte> payload = gather(mbuf, gather_);
  if (seal_ != nullptr)
    if (const auto why = seal_->open(eth, payload, opened_, payload); why != wire::Drop::kNone) {
      loop_.drop(why);
      return;
    }
  const bool is_good = loop_.on_frame(eth.src, payload, mbuf.pkt_len, now);
  if (seal_ != nullptr && is_good) seal_->remember_sender();
}

// --- send ------------------------------------------------------------------------------------

unsigned ClientWorker::send(Nanos now) noexcept {
  while (tail_.size() < kBurst && loop_.has_output(now)) {
    if (spare_ == nullptr) spare_ = rte_pktmbuf_alloc(port_.pool());
    if (spare_ == nullptr) {
      stats_.tx_no_mbuf.add(1);
      break;
    }
    const std::size_t room =
        rte_pktmbuf_tailroom(spare_) - (seal_ != nullptr ? wire::kTagBytes : 0);
    const std::size_t size = loop_.next({rte_pktmbuf_mtod(spare_, std::byte*), room}, now);
    if (size == 0) break;
    enqueue(size);
  }
  const std::uint16_t nb_tx = tail_.flush(queue_);
  stats_.tx_back_pressure.set(tail_.back_pressure().read());
  return nb_tx;
}

void ClientWorker::enqueue(std::size_t size) noexcept {
  rte_mbuf* mbuf = std::exchange(spare_, nullptr);
  mbuf->data_len = static_cast<std::uint16_t>(size);
  mbuf->pkt_len = mbuf->data_len;
  if (seal_ != nullptr) seal_mbuf(*seal_, *mbuf);
  stats_.tx_frames.add(1);
  stats_.tx_bytes.add(mbuf->pkt_len);
  RTE_VERIFY(tail_.push(mbuf));  // send() leaves room
}

void ClientWorker::say_bye() noexcept {
  if (engine_.state() != ClientState::kJoined || tail_.room() == 0) return;
  if (spare_ == nullptr) spare_ = rte_pktmbuf_alloc(port_.pool());
  if (spare_ == nullptr) return;
  enqueue(engine_.write_bye({rte_pktmbuf_mtod(spare_, std::byte*), rte_pktmbuf_tailroom(spare_)}));
  tail_.flush(queue_);
}

}  // namespace snowfabric
