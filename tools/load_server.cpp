// SPDX-License-Identifier: BSD-3-Clause
#include "tools/load_server.hpp"

#include <algorithm>

#include "fabric/poll_loop.hpp"
#include "tools/load_mbuf.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::size_t kTailFrames = 2 * kBurst;  // as ServerWorker has it

}  // namespace

void LoadServer::run(const std::atomic<bool>& stop, const IdleConfig& idle_config) {
  Idle idle{idle_config};
  const std::array wait_fds{port_.wait_fd()};
  const auto deadline = [this](Nanos now) {
    const Nanos longest = now + Idle::kLongestSleep;
    if (tail_.size() != 0) return now;
    return trial_ == nullptr ? longest : std::min(longest, trial_->deadline(now));
  };
  run_lcore(
      [this](Nanos now) { return turn(now); }, deadline,
      [this](bool sleeps) { sleeps ? port_.arm_rx_interrupt() : port_.disarm_rx_interrupt(); },
      wait_fds, idle, stop);
}

unsigned LoadServer::turn(Nanos now) {
  std::array<rte_mbuf*, kBurst> burst;
  const std::uint16_t nb_rx = queue_.rx_burst(burst);
  for (std::uint16_t i = 0; i < nb_rx; ++i) on_mbuf(*burst[i], now);
  rte_pktmbuf_free_bulk(burst.data(), nb_rx);
  return nb_rx + send(now);
}

void LoadServer::on_mbuf(const rte_mbuf& mbuf, Nanos now) {
  wire::EthHdr eth;
  LoadFrame asked;
  wire::Frame frame;
  if (!read_eth(mbuf, eth) || eth.type.host() != wire::kEtherType || eth.src.is_multicast()) {
    ++nb_foreign_;
    return;
  }
  const auto payload = gather(mbuf, gather_);
  const LoadVerdict verdict = parse_load(payload, asked);
  if (verdict == LoadVerdict::kGood) {
    if (asked.type != LoadType::kState) on_control(asked, eth.src, now);
  } else if (verdict == LoadVerdict::kBad) {
    ++nb_bad_;
  } else if (trial_ != nullptr && wire::parse(payload, frame) == wire::Drop::kNone &&
             frame.image_id == trial_->id()) {
    trial_->on_frame(frame, eth.src, now);
  } else {
    ++nb_foreign_;
  }
}

void LoadServer::on_control(const LoadFrame& asked, const MacAddr& src, Nanos now) {
  const auto is_ours = [&] { return trial_ != nullptr && trial_->id() == asked.trial; };
  if (asked.type == LoadType::kStart && !is_ours()) {
    trial_.reset();  // both may not have room
    trial_ =
        std::make_unique<LoadTrial>(asked.trial, asked.order, image_,
                                    static_cast<std::uint16_t>(port_.mtu_bytes()), port_.mac());
    ++nb_trials_;
  }
  if (is_ours()) trial_->hear(now);
  if (is_ours() && asked.type == LoadType::kGo) trial_->go(now);
  rte_mbuf* const mbuf = tail_.room() == 0 ? nullptr : rte_pktmbuf_alloc(port_.pool());
  if (mbuf == nullptr) return;  // they ask again
  LoadFrame answer{.type = LoadType::kState, .trial = asked.trial};
  if (is_ours()) answer.report = trial_->report();
  answer.report.answers = static_cast<std::uint8_t>(asked.type);
  write_load({rte_pktmbuf_mtod(mbuf, std::byte*), kLoadFrameBytes}, src, port_.mac(), answer);
  push_frame(tail_, mbuf, kLoadFrameBytes);
}

unsigned LoadServer::send(Nanos now) noexcept {
  ServerTx tx;
  while (trial_ != nullptr && tail_.size() < kTailFrames) {
    rte_mbuf* const mbuf = rte_pktmbuf_alloc(port_.pool());
    if (mbuf == nullptr) break;
    if (!trial_->next(tx, now)) {
      rte_pktmbuf_free(mbuf);
      break;
    }
    push_frame(tail_, mbuf,
               trial_->write(tx, {rte_pktmbuf_mtod(mbuf, std::byte*), rte_pktmbuf_tailroom(mbuf)}));
  }
  const std::uint16_t nb_tx = tail_.flush(queue_);
  if (trial_ != nullptr && tail_.size() == 0) trial_->all_sent(now);
  return nb_tx;
}

}  // namespace snowfabric::bench
