// SPDX-License-Identifier: BSD-3-Clause
#include "tools/load_trial.hpp"

#include <algorithm>
#include <cstring>

#include "fabric/base/prng.hpp"
#include "fabric/crc32c.hpp"

namespace snowfabric::bench {
namespace {

/// Of all members together: their reports must not be the load.
constexpr Nanos kReportSpacing = std::chrono::milliseconds{1};

ServerConfig server_config(const LoadOrder& order, std::uint16_t mtu_bytes) {
  ServerConfig config;
  config.mtu_bytes = mtu_bytes;
  config.report_interval =
      std::max(config.report_interval, kReportSpacing * static_cast<int>(order.nb_members.host()));
  const auto rate = static_cast<double>(order.bytes_per_s.host());
  config.flow.max_bytes_per_s = rate;
  config.flow.initial_bytes_per_s = std::min(config.flow.initial_bytes_per_s, rate);
  config.flow.floor_bytes_per_s = std::min(config.flow.floor_bytes_per_s, rate);
  if (order.kind == static_cast<std::uint8_t>(LoadKind::kReplay)) return config;
  config.flow.initial_bytes_per_s = rate;  // the rate is the question here, not the answer
  config.flow.floor_bytes_per_s = rate;
  return config;
}

}  // namespace

LoadImage::LoadImage(std::uint64_t seed) : bytes_(kDistinct * kPageSize), crcs_(kDistinct) {
  Prng random{seed};
  for (std::size_t i = 0; i < bytes_.size(); i += sizeof(std::uint64_t)) {
    const std::uint64_t word = random.next();
    std::memcpy(bytes_.data() + i, &word, sizeof word);
  }
  for (std::size_t i = 0; i < kDistinct; ++i) crcs_[i] = crc32c({page(Gfn{i}), kPageSize});
}

// --- trial -----------------------------------------------------------------------------------

LoadTrial::LoadTrial(std::uint64_t id, const LoadOrder& order, const LoadImage& image,
                     std::uint16_t mtu_bytes, const MacAddr& mac)
    : id_{id},
      kind_{static_cast<LoadKind>(order.kind)},
      image_{image},
      mtu_bytes_{mtu_bytes},
      mac_{mac},
      nb_pages_{order.nb_pages.host()},
      length_{std::chrono::milliseconds{order.millis.host()}},
      nb_fragments_{wire::fragments_for_mtu(mtu_bytes)},
      pairs_{std::min(mtu_bytes, order.mtu_bytes.host()) >= wire::kPairMtuBytes},
      bucket_{static_cast<double>(order.bytes_per_s.host()), ServerConfig{}.burst_bytes} {
  if (kind_ == LoadKind::kBare) return;
  crcs_.resize(nb_pages_);
  for (std::uint64_t i = 0; i < nb_pages_; ++i) crcs_[i] = image_.crc(Gfn{i});
  zero_words_.resize((nb_pages_ + 63) / 64);
  const ImageView view{.image_id = id,
                       .epoch = 1,
                       .nb_pages = nb_pages_,
                       .crc32c = crcs_,
                       .zero_words = zero_words_};
  engine_.emplace(server_config(order, mtu_bytes), view, stats_);
}

void LoadTrial::go(Nanos now) noexcept {
  if (state_ != LoadState::kReady) return;
  state_ = LoadState::kRunning;
  began_ = heard_ = now;
  if (engine_) engine_->set_push(kind_ != LoadKind::kReplay);
}

bool LoadTrial::is_over(Nanos now) const noexcept {
  const bool all = engine_ && stats_.tx_pages_pushed.read() == nb_pages_;
  return now - began_ >= length_ || all || (!engine_ && now - heard_ >= kSilence);
}

void LoadTrial::all_sent(Nanos now) noexcept {
  if (state_ != LoadState::kRunning || !is_over(now)) return;
  state_ = LoadState::kDone;
  took_ = now - began_;
}

bool LoadTrial::next(ServerTx& out, Nanos now) noexcept {
  if (state_ == LoadState::kRunning && now - began_ >= length_ && engine_) engine_->set_push(false);
  return engine_ ? engine_->next(out, now) : next_bare(out, now);
}

/// What the engine would send, were there nothing to decide.
bool LoadTrial::next_bare(ServerTx& out, Nanos now) noexcept {
  bucket_.refill(now);
  if (state_ != LoadState::kRunning || is_over(now)) return false;
  const bool pair = pairs_ && next_page_.value + 1 < nb_pages_;
  const std::size_t nb_bytes =
      pair ? wire::kMaxFrameBytes
           : wire::kPageHeaderBytes + wire::fragment_bytes(next_fragment_, nb_fragments_);
  if (!bucket_.take(nb_bytes)) return false;
  out = {.type = wire::FrameType::kPage,
         .dst = group_address(id_),
         .flags = wire::kFlagSequenced,
         .fragment = next_fragment_,
         .seq = seq_++,
         .range = {next_page_, 1}};
  if (pair) out.second = Gfn{next_page_.value + 1};
  if (++next_fragment_ < nb_fragments_) return true;
  next_fragment_ = 0;
  next_page_.value = (next_page_.value + (pair ? 2 : 1)) % nb_pages_;
  return true;
}

std::size_t LoadTrial::write_header(const ServerTx& tx, std::span<std::byte> out) const noexcept {
  if (engine_) return engine_->write(tx, mac_, out);
  const wire::Identity identity{.image_id = id_, .epoch = 1, .incarnation = 1};
  const auto key = [this](Gfn gfn) { return wire::PageKey{gfn, image_.crc(gfn)}; };
  if (tx.second)
    return wire::write_pair_header(out, identity, tx.dst, mac_, key(tx.range.first),
                                   key(*tx.second), tx.flags, tx.seq);
  return wire::write_page_header(out, identity, tx.dst, mac_, tx.range.first,
                                 image_.crc(tx.range.first), tx.fragment, nb_fragments_, tx.flags,
                                 tx.seq);
}

std::size_t LoadTrial::write(const ServerTx& tx, std::span<std::byte> out) noexcept {
  const std::size_t size = write_frame(tx, out);
  nb_tx_bytes_ += size;
  if ((tx.flags & wire::kFlagSequenced) == 0) return size;
  ++nb_frames_;
  nb_bytes_ += size;
  return size;
}

std::size_t LoadTrial::write_frame(const ServerTx& tx, std::span<std::byte> out) const noexcept {
  std::size_t size = write_header(tx, out);
  if (tx.type != wire::FrameType::kPage) return size;
  const std::size_t offset = tx.fragment * wire::fragment_stride(nb_fragments_);
  const std::size_t nb_bytes = wire::fragment_bytes(tx.fragment, nb_fragments_);
  std::memcpy(out.data() + size, image_.page(tx.range.first) + offset, nb_bytes);
  size += nb_bytes;
  if (!tx.second) return size;
  std::memcpy(out.data() + size, image_.page(*tx.second), kPageSize);
  return size + kPageSize;
}

LoadReport LoadTrial::report() const noexcept {
  return {.state = static_cast<std::uint8_t>(state_),
          .answers = 0,
          .mtu_bytes = mtu_bytes_,
          .nb_frames = nb_frames_,
          .nb_bytes = nb_bytes_,
          .nanos = static_cast<std::uint64_t>(took_.count()),
          .nb_tx_bytes = nb_tx_bytes_};
}

Nanos LoadTrial::deadline(Nanos now) const noexcept {
  if (engine_) return engine_->deadline(now);
  return state_ == LoadState::kRunning ? std::max(now, bucket_.ready_at()) : Nanos::max();
}

}  // namespace snowfabric::bench
