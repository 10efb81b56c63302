// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/client_engine.hpp"
#include "fabric/idle.hpp"
#include "fabric/stats.hpp"
#include "library/carrier.hpp"
#include "library/clock.hpp"

namespace snowfabric {

/// A client of the library: the engine between a carrier and whoever wants pages. One thread runs
/// it; only stop() may be called by others.
class Fetching {
 public:
  /// Called inside of join() and run(); may call request(), stop() and what is const.
  struct Callbacks {
    /// A page has come; each comes once.
    std::function<void(Gfn page, std::span<const std::byte, kPageSize> bytes)> on_page;
    /// The server does not have a page that was requested, or does not deliver it: it is requested
    /// no more. Not needed.
    std::function<void(Gfn page)> on_unavailable{};
  };
  using Clock = Nanos (*)() noexcept;
  static constexpr Nanos kForever = Nanos::max();

  /// @param config  without what the carrier knows: its MTU
  Fetching(std::unique_ptr<Carrier> carrier, ClientConfig config, Callbacks callbacks,
           Clock clock = monotonic_now);

  /// Gives no page yet.
  /// @return ETIMEDOUT: no answer yet; EMSGSIZE: the server's frames do not fit; EUSERS: it has no
  ///         room for another client; EINTR: stop(); EBUSY: join() or run() is running
  /// @throw std::bad_alloc; it may be called again
  [[nodiscard]] Result<void> join(Nanos timeout);
  /// @return ENOTCONN: not joined; ERANGE: not all in the image
  [[nodiscard]] Result<void> request(Gfn first, std::uint64_t nb_pages, wire::Priority priority);
  /// Until all that was requested is here.
  /// @return ETIMEDOUT: not all yet; EHOSTDOWN: the server is silent, said once until it speaks
  ///         again; ENODATA: pages are unavailable; EINTR: stop(); EBUSY: join() or run() is
  ///         running
  [[nodiscard]] Result<void> run(Nanos timeout);
  /// One turn of the loop. @return what there was to do
  unsigned turn(Nanos now);
  void stop() noexcept { stop_.store(true, std::memory_order_relaxed); }
  /// Says BYE, if it has joined.
  void leave() noexcept;

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return engine_.nb_pages(); }
  [[nodiscard]] std::uint64_t nb_missing() const noexcept { return nb_missing_; }
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;
  [[nodiscard]] const ClientStats& stats() const noexcept { return stats_; }
  [[nodiscard]] const DropCounters& drops() const noexcept { return drops_; }
  [[nodiscard]] const Carrier& carrier() const noexcept { return *carrier_; }

 private:
  /// A bit a page.
  struct PageSet {
    std::vector<std::uint64_t> words;
    [[nodiscard]] bool has(Gfn page) const noexcept {
      return (words[page.value / 64] >> (page.value % 64) & 1U) != 0;
    }
    void add(Gfn page) noexcept { words[page.value / 64] |= std::uint64_t{1} << (page.value % 64); }
    void remove(Gfn page) noexcept {
      words[page.value / 64] &= ~(std::uint64_t{1} << (page.value % 64));
    }
  };

  /// The first page that was given up since that was reported, and how many were.
  struct GivenUp {
    Gfn first{};
    const char* why = nullptr;
    std::uint64_t nb_pages = 0;
  };

  Result<void> on_join();
  unsigned receive(Nanos now);
  void on_frame(const Carrier::Received& received, Nanos now);
  void on_page(const wire::Frame& frame, Nanos now);
  void on_ranges(const wire::Frame& frame, Nanos now);
  void deliver(Gfn page, std::span<const std::byte, kPageSize> bytes);
  [[nodiscard]] bool take_off(Gfn page) noexcept;
  void give_up(Gfn page, const char* why);
  void ask(Nanos now);
  [[nodiscard]] bool runs_dry() const noexcept;
  void see_unanswered();
  void ask_for(wire::Priority wanted, Nanos now) noexcept;
  [[nodiscard]] bool ask_for_range(PageRange& range, wire::Priority wanted, Nanos now) noexcept;
  void look_again();
  unsigned send(Nanos now) noexcept;
  [[nodiscard]] std::optional<Error> trouble();

  std::unique_ptr<Carrier> carrier_;
  ClientStats stats_;
  DropCounters drops_;
  ClientEngine engine_;
  Callbacks callbacks_;
  Idle idle_;
  Clock clock_;
  PageSet here_, requested_;  // requested: and not here
  PageSet demanded_;          // of requested_
  std::uint64_t nb_missing_ = 0;
  std::uint64_t first_word_ = 0;                 // of requested_, that may not be 0
  std::array<std::deque<PageRange>, 2> to_ask_;  // by priority
  GivenUp given_up_;
  bool joined_ = false, running_ = false, death_reported_ = false;
  bool has_news_ = false;  // in to_ask_
  unsigned nb_undrained_ = 0;
  std::atomic<bool> stop_ = false;
};

}  // namespace snowfabric
