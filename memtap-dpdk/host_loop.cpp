// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/host_loop.hpp"

namespace snowfabric {

using wire::Drop;
using wire::FrameType;

bool HostLoop::on_frame(const MacAddr& src, std::span<const std::byte> l2_payload,
                        std::size_t frame_bytes, Nanos now) noexcept {
  wire::Frame frame;
  Drop why = wire::parse(l2_payload, frame);
  if (why == Drop::kNone) why = engine_.on_frame(frame, src, frame_bytes, now);
  if (why != Drop::kNone) [[unlikely]] {
    drops_.count(why);
    return false;
  }
  if (frame.type == FrameType::kRequest) repairs_.on_request(frame, now);
  if (frame.type == FrameType::kPage) {
    do on_page(frame, now);
    while (frame.next_page());
  }
  if (frame.type == FrameType::kZeros || frame.type == FrameType::kAbsent) on_ranges(frame, now);
  return true;
}

void HostLoop::on_page(const wire::Frame& frame, Nanos now) noexcept {
  repairs_.on_page(frame, now);
  if (host_ == nullptr || !host_->needs(Gfn{frame.page.gfn.host()})) {
    engine_.on_duplicate(frame);
    return;
  }
  Drop why{};
  const auto arrival = engine_.take_page(frame, now, why);
  if (arrival) host_->on_page(*arrival, now);
  if (why != Drop::kNone) [[unlikely]]
    drops_.count(why);
}

void HostLoop::on_ranges(const wire::Frame& frame, Nanos now) noexcept {
  bool is_false = false;
  for (std::size_t i = 0; i < frame.nb_ranges(); ++i) {
    PageRange range = frame.range(i);
    const std::uint32_t nb_believed = engine_.nb_believed(frame.type, range);
    is_false |= nb_believed != range.nb_pages;
    range.nb_pages = nb_believed;
    if (nb_believed == 0) continue;
    if (frame.type == FrameType::kZeros) repairs_.on_zeros(range, frame.flags, now);
    const bool demanded = engine_.take_range(frame.type, range, now);
    if (host_ == nullptr) continue;
    if (frame.type == FrameType::kZeros) host_->on_zeros(range, now);
    if (frame.type == FrameType::kAbsent && demanded) host_->fail(range, now);
  }
  if (is_false) [[unlikely]]
    drops_.count(Drop::kBadHash);
}

unsigned HostLoop::ask(Nanos now) noexcept {
  unsigned nb_faults = 0;
  if (host_ != nullptr) {
    nb_faults = host_->poll_faults(now);
    host_->fail_unanswered();
  }
  engine_.expire(now);
  return nb_faults;
}

std::size_t HostLoop::next(std::span<std::byte> out, Nanos now) noexcept {
  const std::size_t size = engine_.next(out, now);
  return size != 0 ? size : repairs_.next(out, now);
}

void HostLoop::idle(Nanos now) noexcept {
  if (host_ != nullptr && host_->has_gathered()) host_->flush(now);
}

}  // namespace snowfabric
