// SPDX-License-Identifier: BSD-3-Clause
#include "library/serving.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "library/clock.hpp"

namespace snowfabric {
namespace {

ServerConfig completed(ServerConfig config, const Carrier& carrier) noexcept {
  config.mtu_bytes = carrier.mtu_bytes();
  config.frame_overhead_bytes = carrier.overhead_bytes();
  return config;
}

}  // namespace

Serving::Serving(PageSource pages, std::unique_ptr<Carrier> carrier, ServerConfig config)
    : pages_{std::move(pages)},
      carrier_{std::move(carrier)},
      engine_{completed(config, *carrier_), pages_.view(), stats_} {}

Result<void> Serving::run(std::atomic<bool>& stop) {
  Idle idle{carrier_->idle()};
  while (!stop.load(std::memory_order_relaxed)) {
    const Nanos now = monotonic_now();
    if (turn(now) != 0)
      idle.hit();
    else
      wait_for_frames(*carrier_, idle, deadline(now) - now);
    if (!read_) return std::exchange(read_, {});
  }
  stop = false;
  if (engine_.has_clients() && !carrier_->room().empty()) push(engine_.bye());
  carrier_->flush();
  return {};
}

Nanos Serving::deadline(Nanos now) const noexcept {
  return carrier_->has_queued() ? now + Idle::kBlindSleep : engine_.deadline(now);
}

unsigned Serving::turn(Nanos now) {
  const unsigned nb_received = receive(now);
  return nb_received + send(now);
}

unsigned Serving::receive(Nanos now) noexcept {
  const auto frames = carrier_->receive();
  for (const auto& received : frames) {
    wire::Frame frame;
    wire::Drop why = wire::parse(received.payload, frame);
    if (why == wire::Drop::kNone) why = engine_.on_frame(frame, received.src, now);
    if (why != wire::Drop::kNone) [[unlikely]]
      drops_.count(why);
  }
  return static_cast<unsigned>(frames.size());
}

unsigned Serving::send(Nanos now) {
  ServerTx tx;
  while (!carrier_->room().empty() && engine_.next(tx, now)) push(tx);
  return static_cast<unsigned>(carrier_->flush());
}

void Serving::push(const ServerTx& tx) {
  const auto room = carrier_->room();
  std::size_t nb_bytes = engine_.write(tx, carrier_->address(), room);
  nb_tail_ = 0;
  if (tx.type == wire::FrameType::kPage) {
    nb_bytes += put_page(tx.range.first, tx, room.subspan(nb_bytes));
    if (tx.second) nb_bytes += put_page(*tx.second, tx, room.subspan(nb_bytes));
    if (!read_) return;  // the frame is not sent
  }
  carrier_->push(nb_bytes, std::span{tail_}.first(nb_tail_));
}

/// What the frame has of the page: where it lies, or read into `room`. @return bytes of the latter
std::size_t Serving::put_page(Gfn page, const ServerTx& tx, std::span<std::byte> room) {
  const std::size_t nb_fragments = engine_.nb_fragments();
  const std::size_t offset = tx.fragment * wire::fragment_stride(nb_fragments);
  const std::size_t nb_bytes = wire::fragment_bytes(tx.fragment, nb_fragments);
  if (const auto mapped = pages_.mapped(page); !mapped.empty()) {
    tail_[nb_tail_++] = mapped.subspan(offset, nb_bytes);
    return 0;
  }
  if (read_page_ != page) {
    read_page_.reset();  // also if it throws
    const int error = pages_.read(page, page_);
    if (error == 0)
      read_page_ = page;
    else
      read_ = fail(error, fmt::format("read page {}", page.value));
  }
  std::ranges::copy(std::span{page_}.subspan(offset, nb_bytes), room.begin());
  return nb_bytes;
}

}  // namespace snowfabric
