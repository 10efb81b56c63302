// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>
#include <span>
#include <string_view>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// What a poll loop does when a turn brought nothing. docs/design.md, "Idle strategy".
enum class IdleStrategy : std::uint8_t {
  kBusy,     ///< a CPU of its own: pause and look again
  kYield,    ///< shared CPUs, all busy: sched_yield on every miss
  kBackoff,  ///< shared CPUs, often idle: pause, then yield, then sleep until something comes
};

[[nodiscard]] constexpr std::string_view to_string(IdleStrategy s) noexcept {
  constexpr std::array<std::string_view, 3> kNames{"busy", "yield", "backoff"};
  return kNames[static_cast<std::size_t>(s)];
}

/// "busy", "yield" or "backoff"; nullopt on anything else.
[[nodiscard]] constexpr std::optional<IdleStrategy> parse_idle(std::string_view text) noexcept {
  for (const auto s : {IdleStrategy::kBusy, IdleStrategy::kYield, IdleStrategy::kBackoff})
    if (text == to_string(s)) return s;
  return std::nullopt;
}

struct IdleConfig {
  IdleStrategy strategy = IdleStrategy::kBackoff;
  unsigned nb_pauses = 100;  ///< misses in a row that only pause
  unsigned nb_yields = 100;  ///< misses after those that give the CPU away
};

/// Counts misses in a row and waits accordingly. One poll loop owns one Idle.
class Idle {
 public:
  static constexpr std::size_t kMaxFds = 8;
  static constexpr Nanos kLongestSleep = std::chrono::milliseconds{100};
  /// Sleep when a source of work has no fd that could wake us.
  static constexpr Nanos kBlindSleep = std::chrono::microseconds{50};
  /// A sleep takes about 50 us of timer slack more than asked: shorter ones are not worth it.
  static constexpr Nanos kShortestSleep = std::chrono::microseconds{20};

  explicit Idle(IdleConfig config = {}) noexcept : config_{config} {}

  /// A turn found work.
  void hit() noexcept { nb_misses_ = 0; }

  /// A turn found none; returns after a pause, a yield or a sleep.
  /// @param wait_fds   one fd a source of work, readable = work; -1 for a source without fd, which
  ///                   then shortens the sleep. At most kMaxFds, the rest counts as without fd.
  /// @param max_sleep  time to the engine's next deadline
  /// @return whether it slept
  bool miss(std::span<const int> wait_fds = {}, Nanos max_sleep = kLongestSleep) noexcept {
    if (config_.strategy == IdleStrategy::kBusy) return pause();
    if (config_.strategy == IdleStrategy::kYield) return yield();
    if (nb_misses_ < config_.nb_pauses + config_.nb_yields)
      return nb_misses_++ < config_.nb_pauses ? pause() : yield();
    return sleep(wait_fds, max_sleep);
  }

  /// The next miss() will sleep: the moment to arm an RX interrupt (Port::arm_rx_interrupt).
  [[nodiscard]] bool about_to_sleep() const noexcept {
    return config_.strategy == IdleStrategy::kBackoff &&
           nb_misses_ >= config_.nb_pauses + config_.nb_yields;
  }

  [[nodiscard]] const IdleConfig& config() const noexcept { return config_; }

 private:
  static bool pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield" ::: "memory");
#endif
    return false;
  }
  static bool yield() noexcept {
    sched_yield();
    return false;
  }

  bool sleep(std::span<const int> wait_fds, Nanos max_sleep) noexcept {
    std::array<pollfd, kMaxFds> polled{};
    const std::size_t nb_fds = std::min(wait_fds.size(), polled.size());
    bool blind = wait_fds.empty() || wait_fds.size() > polled.size();
    for (std::size_t i = 0; i < nb_fds; ++i) {
      polled[i] = {.fd = wait_fds[i], .events = POLLIN, .revents = 0};  // poll skips negative fds
      blind = blind || wait_fds[i] < 0;
    }
    const Nanos limit = std::min(max_sleep, blind ? kBlindSleep : kLongestSleep);
    if (limit < kShortestSleep) return yield();
    const timespec timeout{.tv_sec = 0, .tv_nsec = limit.count()};
    if (ppoll(polled.data(), nb_fds, &timeout, nullptr) > 0) hit();
    return true;
  }

  IdleConfig config_;
  unsigned nb_misses_ = 0;
};

}  // namespace snowfabric
