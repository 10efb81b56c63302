// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>

namespace snowfabric {

/// Counts received and missing frames of the group sequence. A late frame takes its loss back, as
/// long as it is at most kWindow behind; a second copy counts nothing.
class LossMeter {
 public:
  static constexpr std::uint32_t kWindow = 64;
  static constexpr std::uint32_t kMaxGap = 1U << 20;  ///< more is a new sequence, not a loss

  /// @return frames now known to be missing just before this one
  std::uint32_t on_seq(std::uint32_t seq) noexcept {
    if (!started_) return restart(seq);
    const auto ahead = static_cast<std::int32_t>(seq - highest_);  // serial arithmetic
    if (ahead > static_cast<std::int32_t>(kMaxGap)) return restart(seq);
    if (ahead > 0) return on_newer(seq, static_cast<std::uint32_t>(ahead));
    const auto behind = static_cast<std::uint32_t>(-static_cast<std::int64_t>(ahead));
    if (behind >= kWindow) return behind > kMaxGap ? restart(seq) : 0;
    const std::uint64_t bit = std::uint64_t{1} << behind;
    if ((seen_ & bit) != 0) return 0;
    seen_ |= bit;
    ++received_;
    if (lost_ > 0) --lost_;
    return 0;
  }

  /// Forgets the position, keeps the totals: the next frame starts a new sequence.
  void new_sequence() noexcept { started_ = false; }

  [[nodiscard]] std::uint32_t received() const noexcept { return received_; }
  [[nodiscard]] std::uint32_t lost() const noexcept { return lost_; }

 private:
  std::uint32_t restart(std::uint32_t seq) noexcept {
    started_ = true;
    highest_ = seq;
    seen_ = ~std::uint64_t{0};  // nothing before this frame is missed
    ++received_;
    return 0;
  }
  std::uint32_t on_newer(std::uint32_t seq, std::uint32_t ahead) noexcept {
    seen_ = ahead < kWindow ? (seen_ << ahead) | 1U : 1U;
    highest_ = seq;
    ++received_;
    lost_ += ahead - 1;
    return ahead - 1;
  }

  std::uint64_t seen_ = 0;  // bit i: highest_ - i arrived
  std::uint32_t highest_ = 0, received_ = 0, lost_ = 0;
  bool started_ = false;
};

}  // namespace snowfabric
