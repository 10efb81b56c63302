// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "fabric/base/counter.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/latency.hpp"
#include "fabric/base/presence.hpp"
#include "fabric/stats.hpp"

namespace snowfabric {

/// What became of an install. Whatever the verdict, no page is left claimed and not installed, and
/// repeating the call with the same bytes is right: pages that are in are skipped.
enum class Install : std::uint8_t {
  kDone,      ///< every page is present, or belongs to the guest
  kAgain,     ///< the guest is giving pages back: poll_faults(), then repeat
  kNoMemory,  ///< the host is short of memory: repeat later
  kGone,      ///< the guest is dead
  kFailed,    ///< the kernel refused for a reason that will not pass; see trouble()
};

/// How fail() told the guest.
enum class FailMeans : std::uint8_t {
  kPoisoned,   ///< touching the page is SIGBUS from now on
  kKilled,     ///< SIGKILL to the guest: the kernel cannot poison
  kNotNeeded,  ///< the page is there after all, or belongs to the guest
  kAgain,      ///< as Install::kAgain: repeat
  kPaused,     ///< the VM stands still and can be recovered
  kGone,       ///< the guest is dead
  kRefused,    ///< neither worked: the guest belongs to a user we may not signal
};

/// One writer: the thread that calls the adapter. Names in docs/telemetry.md.
struct GuestCounters {
  Counter faults;              ///< reported by poll_faults()
  Counter faults_repeated;     ///< another thread on a page already reported: not reported again
  Counter faults_raced;        ///< the page had come in meanwhile: woken
  Counter faults_zeroed;       ///< on the guest's own pages: answered with zeros at once
  Counter faults_outside;      ///< outside every region
  Counter installed_pages;     ///< with bytes of the image
  Counter zero_pages;          ///< as zero pages of the image
  Counter claimed_zero_pages;  ///< given zeros because the guest had claimed them
  Counter skipped_pages;       ///< offered, but present already or the guest's own
  Counter install_calls;       ///< system calls that installed something
  Counter eexist;              ///< found in place by the kernel
  Counter eagain;              ///< installs put off because of a REMOVE under way
  Counter no_memory;           ///< installs put off because the host is short of memory
  Counter range_gone_pages;    ///< unmapped by the guest, so not installed
  Counter removed_pages;       ///< given back by the guest (REMOVE, UNMAP)
  Counter poisoned_pages;      ///< by fail()
  Counter pauses;              ///< by fail()
  Counter kills;               ///< by fail() or kill()
  Counter unsupported_events;  ///< FORK, REMAP and the like; see trouble()
};

inline constexpr std::array kGuestCounters{
    CounterInfo<GuestCounters>{"faults", &GuestCounters::faults, "reported by poll_faults()"},
    CounterInfo<GuestCounters>{"faults_repeated", &GuestCounters::faults_repeated,
                               "another thread on a page already reported: not reported again"},
    CounterInfo<GuestCounters>{"faults_raced", &GuestCounters::faults_raced,
                               "the page had come in meanwhile: woken"},
    CounterInfo<GuestCounters>{"faults_zeroed", &GuestCounters::faults_zeroed,
                               "on the guest's own pages: answered with zeros at once"},
    CounterInfo<GuestCounters>{"faults_outside", &GuestCounters::faults_outside,
                               "outside every region"},
    CounterInfo<GuestCounters>{"installed_pages", &GuestCounters::installed_pages,
                               "with bytes of the image"},
    CounterInfo<GuestCounters>{"zero_pages", &GuestCounters::zero_pages,
                               "as zero pages of the image"},
    CounterInfo<GuestCounters>{"claimed_zero_pages", &GuestCounters::claimed_zero_pages,
                               "given zeros because the guest had claimed them"},
    CounterInfo<GuestCounters>{"skipped_pages", &GuestCounters::skipped_pages,
                               "offered, but present already or the guest's own"},
    CounterInfo<GuestCounters>{"install_calls", &GuestCounters::install_calls,
                               "system calls that installed something"},
    CounterInfo<GuestCounters>{"eexist", &GuestCounters::eexist, "found in place by the kernel"},
    CounterInfo<GuestCounters>{"eagain", &GuestCounters::eagain,
                               "installs put off because of a REMOVE under way"},
    CounterInfo<GuestCounters>{"no_memory", &GuestCounters::no_memory,
                               "installs put off because the host is short of memory"},
    CounterInfo<GuestCounters>{"range_gone_pages", &GuestCounters::range_gone_pages,
                               "unmapped by the guest, so not installed"},
    CounterInfo<GuestCounters>{"removed_pages", &GuestCounters::removed_pages,
                               "given back by the guest (REMOVE, UNMAP)"},
    CounterInfo<GuestCounters>{"poisoned_pages", &GuestCounters::poisoned_pages, "by fail()"},
    CounterInfo<GuestCounters>{"pauses", &GuestCounters::pauses, "by fail()"},
    CounterInfo<GuestCounters>{"kills", &GuestCounters::kills, "by fail() or kill()"},
    CounterInfo<GuestCounters>{"unsupported_events", &GuestCounters::unsupported_events,
                               "FORK, REMAP and the like; see trouble()"},
};
static_assert(kGuestCounters.size() * sizeof(Counter) == sizeof(GuestCounters));

/// Adds every counter of `from` to `to`.
inline void add_counters(GuestCounters& to, const GuestCounters& from) noexcept {
  for (const auto& info : kGuestCounters) (to.*info.member).add((from.*info.member).read());
}

/// One clone's way into its guest. One thread owns an adapter; nothing here blocks.
/// A page is reported at most once until it is installed, failed or discarded, so the engine need
/// not look for repeats from one guest.
class GuestAdapter {
 public:
  GuestAdapter() = default;
  GuestAdapter(const GuestAdapter&) = delete;
  GuestAdapter& operator=(const GuestAdapter&) = delete;
  virtual ~GuestAdapter() = default;

  /// Pages some vCPU waits for and nobody reported yet; also takes in what the guest gave back.
  /// @return pages written to the front of `out`; may be 0 although more is to come
  virtual std::size_t poll_faults(std::span<Gfn> out) noexcept = 0;

  /// Puts neighbouring pages in place and wakes who waits for them. Of each page the presence
  /// bitmap decides who installs: one that is not absent is skipped. Parts the guest does not map
  /// as well.
  /// @param pages  whole pages from `first` on; borrowed for the call
  virtual Install install(Gfn first, std::span<const std::byte> pages) noexcept = 0;

  /// The same for pages of the image that are all zero.
  virtual Install install_zeros(PageRange pages) noexcept = 0;

  /// Whether a vCPU waits for a page that poll_faults() reported.
  [[nodiscard]] virtual bool waits(Gfn page) const noexcept = 0;

  /// Last resort, when a page cannot be had: the guest gets an error instead of a silent hang.
  virtual FailMeans fail(Gfn page) noexcept = 0;

  /// SIGKILL to the guest's process. @return false if it is dead already or not ours to signal
  virtual bool kill() noexcept = 0;

  [[nodiscard]] virtual bool gone() const noexcept = 0;

  /// Whether it is but the way by which the state comes to a clone that is a guest of its own.
  [[nodiscard]] virtual bool is_loader() const noexcept { return false; }

  /// Empty, or what the guest did that cannot be served. It would hang on it or read wrong bytes:
  /// log this and kill() it.
  [[nodiscard]] virtual std::string_view trouble() const noexcept = 0;

  [[nodiscard]] virtual const GuestCounters& counters() const noexcept = 0;

  /// From the report of a fault until nobody waits for it any more. Its writer is Host.
  [[nodiscard]] const LatencyHistogram& fault_times() const noexcept { return fault_times_; }
  void fault_took(Nanos time) noexcept { fault_times_.add(time); }

  /// How many pages behind a faulted one to ask for with it: one, and twice as many each time the
  /// guest faults right behind them. Guests that start fault here and there: more would cost their
  /// link several times the bytes, and gain no time. Its caller is Host.
  [[nodiscard]] std::uint32_t readahead(Gfn page, std::uint32_t most) noexcept {
    readahead_ = std::min(page == behind_ ? 2 * readahead_ : 1, most);
    behind_ = Gfn{page.value + 1 + readahead_};
    return readahead_;
  }

  /// The clone's bitmap. The engine asks absent(); only the adapter claims.
  [[nodiscard]] virtual const Presence& presence() const noexcept = 0;

 private:
  LatencyHistogram fault_times_;
  Gfn behind_{~std::uint64_t{0}};  // the first page not asked for with the last fault
  std::uint32_t readahead_ = 1;
};

}  // namespace snowfabric
