// SPDX-License-Identifier: BSD-3-Clause
// What ServerEngine sends next, and how it is written.
#include <algorithm>
#include <bit>
#include <utility>

#include "fabric/server_engine.hpp"

namespace snowfabric {

using wire::FrameType;

bool ServerEngine::next(ServerTx& out, Nanos now) noexcept {
  if (now >= next_tick_) tick(now);
  bucket_.refill(now);
  push_bucket_.refill(now);
  if (!control_.empty()) {
    out = control_.pop();
    return true;
  }
  if (train_.fragments == 0) {
    if (ahead_.fragments != 0)
      train_ = std::exchange(ahead_, {});
    else
      next_train(train_, now);
  }
  if (train_.fragments == 0) return false;
  if (pairs_ && ahead_.fragments == 0) next_train(ahead_, now);
  const bool pair = is_pair();
  const std::size_t bytes = train_frame_bytes(pair);
  if (!bucket_.take(bytes)) return false;
  charge_push(bytes, pair);
  send_from_train(out, pair);
  return true;
}

/// @param out  of no fragments, and stays so if there is nothing to send
void ServerEngine::next_train(Train& out, Nanos now) noexcept {
  Gfn page;
  const bool wanted = pop_wanted(page);
  if (!wanted && !pop_pushed(page)) return;
  set_train(out, page, now);
  out.pushed = !wanted;
}

/// When they are sent, not when they are taken, so that two pages still share a frame.
void ServerEngine::charge_push(std::size_t frame_bytes, bool pair) noexcept {
  if (config_.push_bytes_per_s <= 0) return;
  const std::size_t page_bytes = pair ? frame_bytes / 2 : frame_bytes;
  if (train_.pushed) push_bucket_.charge(page_bytes);
  if (pair && ahead_.pushed) push_bucket_.charge(page_bytes);
}

/// Whether the page and the one after it go to the same place in one frame.
bool ServerEngine::is_pair() const noexcept {
  return pairs_ && ahead_.fragments != 0 && ahead_.dst == train_.dst && !train_.alone &&
         !ahead_.alone;
}

bool ServerEngine::pop_wanted(Gfn& page) noexcept {
  for (std::size_t priority = 0; priority < queues_.size(); ++priority) {
    while (!queues_[priority].empty()) {
      page = Gfn{queues_[priority].pop()};
      PageSlot& slot = pages_[page];
      slot.queued = slot.queued & ~(1U << priority) & 3U;
      if (slot.pending) return true;
    }
  }
  return false;
}

bool ServerEngine::pop_pushed(Gfn& page) noexcept {
  if (!has_pushed() || !push_bucket_.is_ready()) return false;
  while (push_cursor_ < image_.nb_pages) {
    page = Gfn{push_cursor_};
    const PageRange step = image_.is_zero(page) ? zero_run(page) : PageRange{page, 1};
    page = step.first;
    push_cursor_ = step.first.value + step.nb_pages;
    PageSlot& slot = pages_[page];
    if (PageTable::was_multicast(slot)) continue;
    slot.fragments = all_fragments_;
    slot.shared = true;  // pushed pages are for everybody, also in the end game
    stats_.tx_pages_pushed.add(1);
    return true;
  }
  return false;
}

void ServerEngine::set_train(Train& out, Gfn page, Nanos now) noexcept {
  PageSlot& slot = pages_[page];
  const bool zero = image_.is_zero(page);
  // Missing fragments are a member's loss: the others have the page, or lost other fragments.
  const bool repair = slot.fragments != all_fragments_;
  const bool has_asker = clients_.valid(slot.last_client);
  // What went out is asked for by who lost it. Where those are several, one answer is for all.
  const bool several = nb_lacking_ >= 1 && has_asker && !is_late(slot.last_client, slot);
  const bool to_one =
      (end_game_.active() || repair) && !zero && !slot.shared && !several && has_asker;
  if (repair && several) slot.fragments = all_fragments_;  // they lack others, too
  // Not put together elsewhere and copied: the copy would wait for the stores of the pieces.
  out.page = page;
  out.fragments = zero ? std::uint8_t{1} : slot.fragments;
  out.multicast = !to_one;
  out.alone = zero || slot.missed;
  out.dst = to_one ? clients_[slot.last_client].mac : group_;
  slot.pending = false;
  if (!zero) {
    if (!PageTable::was_multicast(slot) && !slot.sent_to_one) stats_.pages_sent_once.add(1);
    if (!to_one && pages_.last_multicast(slot) <= newest_join_ && end_game_.on_new_multicast())
      update_end_game();
    if (repair) stats_.tx_pages_partial.add(1);
    (to_one ? stats_.tx_pages_unicast : stats_.tx_pages_multicast).add(1);
  }
  if (to_one)
    slot.sent_to_one = true;
  else
    pages_.went_to_all(slot, now);
}

void ServerEngine::send_from_train(ServerTx& out, bool pair) noexcept {
  out = {.dst = train_.dst, .range = {train_.page, 1}};
  if (train_.multicast) {
    out.flags = wire::kFlagSequenced;
    out.seq = seq_++;
  }
  if (image_.is_zero(train_.page)) {
    out.type = FrameType::kZeros;
    out.range = zero_run(train_.page);
    stats_.tx_zero_pages.add(out.range.nb_pages);
    train_.fragments = 0;
    return;
  }
  out.type = FrameType::kPage;
  out.fragment = static_cast<std::uint8_t>(std::countr_zero(train_.fragments));
  train_.fragments &= static_cast<std::uint8_t>(train_.fragments - 1);
  if (!pair) return;
  out.second = std::exchange(ahead_, {}).page;
  stats_.tx_pairs.add(1);
}

PageRange ServerEngine::zero_run(Gfn page) const noexcept {
  // Clipped to an aligned block, so that every page of a run names the same run.
  static_assert(wire::kMaxRangePages % 64 == 0);
  const std::uint64_t block = page.value / wire::kMaxRangePages * wire::kMaxRangePages;
  const std::uint64_t block_end = std::min(block + wire::kMaxRangePages, image_.nb_pages);
  std::uint64_t first = page.value;
  while (first > block) {  // word by word: ones just below bit `first`
    const auto bit = (first - 1) % 64;
    const auto ones = std::countl_one(image_.zero_words[(first - 1) / 64] << (63 - bit));
    first -= static_cast<unsigned>(std::min<std::uint64_t>(static_cast<unsigned>(ones), bit + 1));
    if (static_cast<std::uint64_t>(ones) <= bit) break;
  }
  std::uint64_t end = page.value;
  while (end < block_end) {
    const auto bit = end % 64;
    const auto ones = std::countr_one(image_.zero_words[end / 64] >> bit);
    end += static_cast<unsigned>(ones);
    if (static_cast<std::uint64_t>(ones) < 64 - bit) break;
  }
  end = std::min(end, block_end);
  return {Gfn{first}, static_cast<std::uint32_t>(end - first)};
}

std::size_t ServerEngine::train_frame_bytes(bool pair) const noexcept {
  if (pair) return wire::kMaxFrameBytes + config_.frame_overhead_bytes;
  if (image_.is_zero(train_.page))
    return sizeof(wire::EthHdr) + sizeof(wire::Header) + sizeof(wire::RangeEntry) +
           config_.frame_overhead_bytes;
  const auto fragment = static_cast<std::size_t>(std::countr_zero(train_.fragments));
  return wire::kPageHeaderBytes + wire::fragment_bytes(fragment, nb_fragments_) +
         config_.frame_overhead_bytes;
}

ServerTx ServerEngine::bye() noexcept {
  return {.type = FrameType::kBye, .dst = group_, .flags = wire::kFlagSequenced, .seq = seq_++};
}

std::size_t ServerEngine::write(const ServerTx& tx, const MacAddr& src,
                                std::span<std::byte> out) const noexcept {
  switch (tx.type) {
    case FrameType::kPage:
      if (tx.second)
        return wire::write_pair_header(out, identity_, tx.dst, src, key_of(tx.range.first),
                                       key_of(*tx.second), tx.flags, tx.seq);
      return wire::write_page_header(out, identity_, tx.dst, src, tx.range.first,
                                     image_.crc32c[tx.range.first.value], tx.fragment,
                                     nb_fragments_, tx.flags, tx.seq);
    case FrameType::kWelcome:
      return wire::write_welcome(
          out, identity_, tx.dst, src,
          {.client_id = tx.client_id,
           .nb_pages = image_.nb_pages,
           .report_interval_us = static_cast<std::uint32_t>(config_.report_interval.count() / 1000),
           .mtu_bytes = config_.mtu_bytes,
           .nb_fragments = static_cast<std::uint8_t>(nb_fragments_),
           .reserved = 0});
    case FrameType::kBye:
      return wire::write_bye(out, identity_, tx.dst, src, tx.client_id, tx.flags, tx.seq);
    default:
      return wire::write_ranges(out, tx.type, identity_, tx.dst, src, {&tx.range, 1}, tx.flags,
                                tx.seq);
  }
}

Nanos ServerEngine::deadline(Nanos now) const noexcept {
  if (!control_.empty()) return now;
  if (has_wanted()) return std::max(now, bucket_.ready_at());
  if (!has_pushed()) return std::max(now, next_tick_);
  return std::max({now, bucket_.ready_at(), std::min(push_bucket_.ready_at(), next_tick_)});
}

bool ServerEngine::has_wanted() const noexcept {
  return train_.fragments != 0 || ahead_.fragments != 0 || !queues_[0].empty() ||
         !queues_[1].empty();
}

bool ServerEngine::has_pushed() const noexcept {
  return config_.push && clients_.size() != 0 && push_cursor_ < image_.nb_pages;
}

}  // namespace snowfabric
