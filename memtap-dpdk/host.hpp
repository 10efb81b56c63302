// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/client_engine.hpp"
#include "fabric/stats.hpp"
#include "memtap-dpdk/arrival_buffer.hpp"
#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/kept_image.hpp"
#include "memtap-dpdk/working_set.hpp"

namespace snowfabric {

/// Written by memtap's lcore. Guests' own counters are summed into it by the control path.
struct alignas(kCacheLine) HostStats {
  Counter guests, guests_attached, guests_rejected, guests_of_others, guests_gone, guests_killed;
  Counter fault_hits_buffer, prefetch_wanted, wants_deferred, bursts, burst_pages, refetched_pages;
  Counter failed_pages, kept_pages, keep_failed, keep_overwrote, fault_hits_kept, loaded_pages;
  Counter recorded_pages;
};
inline constexpr std::array kHostCounters{
    CounterInfo<HostStats>{"guests", &HostStats::guests, "guests attached now"},
    CounterInfo<HostStats>{"guests_attached", &HostStats::guests_attached, "guests that came"},
    CounterInfo<HostStats>{"guests_rejected", &HostStats::guests_rejected,
                           "connections that did not become a guest"},
    CounterInfo<HostStats>{"guests_of_others", &HostStats::guests_of_others,
                           "of these, connections of users who may not connect"},
    CounterInfo<HostStats>{"guests_gone", &HostStats::guests_gone, "guests that left or died"},
    CounterInfo<HostStats>{"guests_killed", &HostStats::guests_killed,
                           "guests killed because their memory could not be completed"},
    CounterInfo<HostStats>{"fault_hits_buffer", &HostStats::fault_hits_buffer,
                           "faults answered from the arrival buffer"},
    CounterInfo<HostStats>{"prefetch_wanted", &HostStats::prefetch_wanted,
                           "pages asked for that nobody waits for"},
    CounterInfo<HostStats>{"wants_deferred", &HostStats::wants_deferred,
                           "faults put off because the request table was full"},
    CounterInfo<HostStats>{"bursts", &HostStats::bursts, "runs installed from the arrival buffer"},
    CounterInfo<HostStats>{"burst_pages", &HostStats::burst_pages, "pages in these runs"},
    CounterInfo<HostStats>{"refetched_pages", &HostStats::refetched_pages,
                           "pages asked for again because an install was put off"},
    CounterInfo<HostStats>{"failed_pages", &HostStats::failed_pages,
                           "pages failed because the server is dead or has no such page"},
    CounterInfo<HostStats>{"kept_pages", &HostStats::kept_pages,
                           "pages kept on this host for later clones now"},
    CounterInfo<HostStats>{"keep_failed", &HostStats::keep_failed,
                           "pages not kept because the host is short of memory"},
    CounterInfo<HostStats>{"keep_overwrote", &HostStats::keep_overwrote,
                           "pages that a stranger had put into the kept file as zeros"},
    CounterInfo<HostStats>{"fault_hits_kept", &HostStats::fault_hits_kept,
                           "faults answered from the pages kept here"},
    CounterInfo<HostStats>{"loaded_pages", &HostStats::loaded_pages,
                           "pages of the working set given to guests before they asked"},
    CounterInfo<HostStats>{"recorded_pages", &HostStats::recorded_pages,
                           "pages of the working set as it would be recorded now"},
};
static_assert(kHostCounters.size() * sizeof(Counter) <= sizeof(HostStats) &&
              sizeof(HostStats) - kHostCounters.size() * sizeof(Counter) < kCacheLine);

/// The clones of one image on this host, between the client engine and their adapters: which pages
/// are still needed, what is installed when. No I/O but through adapters. One lcore.
class Host {
 public:
  /// @param prefetch_pages  most neighbours behind a faulting page to ask for with it
  /// @param buffer_pages    capacity of the arrival buffer
  /// @param kept  where pages are kept for guests to come; nullptr: nowhere
  Host(ClientEngine& engine, HostStats& stats, std::uint32_t prefetch_pages,
       std::size_t buffer_pages, KeptImage* kept = nullptr);

  /// The guest is given its lead of the working set from now on.
  void attach(GuestAdapter& guest);
  /// The guest is dead; pages only it wanted are no longer asked for.
  void detach(const GuestAdapter& guest) noexcept;
  [[nodiscard]] std::span<GuestAdapter* const> guests() const noexcept { return guests_; }

  /// Takes faults from every guest and asks for their pages. @return faults seen
  unsigned poll_faults(Nanos now) noexcept;

  /// Pages to fetch in the background, in this order, behind the working set: once there is a guest
  /// or, where pages are kept, the time of the rest has come.
  void prefetch(std::span<const PageRange> list);
  /// The working set of earlier clones: given to each guest before it asks, ahead of what it has
  /// touched of it, and fetched as far. The rest follows when no lead has moved for a while.
  /// @param rest_at  not before this time, and without a guest only where pages are kept
  /// @pre no guest is attached, and it was not called before
  void load(std::span<const PageRange> working_set, Nanos rest_at);
  /// The guest gets every page it lacks, fetched as prefetch, while it runs. @pre it is attached
  void complete(GuestAdapter& guest);
  /// Until it has all.
  [[nodiscard]] bool completing(const GuestAdapter& guest) const noexcept;
  static constexpr std::size_t kMaxRecorded = std::size_t{1} << 16U;  ///< ranges
  /// For load() of a later memtap: the working set loaded here, then the pages that clones of this
  /// host had beyond it, in the order in which one first had them.
  [[nodiscard]] std::span<const PageRange> recorded() const noexcept { return recorded_; }

  /// Whether a guest waits for the page, or some clone lacks it and it is not in the arrival
  /// buffer.
  [[nodiscard]] bool needs(Gfn page) const noexcept;
  void on_page(const PageArrival& arrival, Nanos now) noexcept;
  void on_zeros(PageRange range, Nanos now) noexcept;
  /// Installs what has gathered: the loop is idle, so nothing is gained by waiting.
  void flush(Nanos now) noexcept;
  [[nodiscard]] bool has_gathered() const noexcept { return !gathered_.empty(); }

  /// Nothing is under way here that goes on without frames and faults.
  [[nodiscard]] bool quiet() const noexcept;

  /// Guests that wait for what the server does not deliver, or has not got, get an error instead of
  /// a hang. The others keep the page absent: it may be had when they come to it.
  void fail_unanswered() noexcept;
  void fail(PageRange range, Nanos now) noexcept;

 private:
  void on_fault(GuestAdapter& guest, Gfn page, Nanos now) noexcept;
  struct Load {  // of the working set into one guest
    GuestAdapter* guest;
    WorkingSet::Cursor fetched{}, given{};
    std::uint64_t until = 0;  // a place: its lead ends there
  };
  struct Completion {  // walks over the image until a whole round finds no page absent
    GuestAdapter* guest;
    Gfn next{};
    bool lacks = false;  // in this round
  };
  struct Wait {  // of a guest for a page it faulted on
    GuestAdapter* guest;
    Gfn page;
    Nanos since;
  };
  struct Deferred {  // what the engine had no room for, and installs put off
    GuestAdapter* guest;
    std::vector<Gfn> pages;
    Nanos retry_at = kNever;  // not before
  };
  void time_answered(Nanos now) noexcept;
  void retry_deferred(Nanos now) noexcept;
  bool retry(Deferred& deferred, Gfn page, bool full, Nanos now) noexcept;
  void give_kept(GuestAdapter& guest, Gfn page, Nanos now) noexcept;
  [[nodiscard]] bool fetch(Gfn page, Nanos now) noexcept;
  void fetch_some(Nanos now) noexcept;
  void give_some(Nanos now) noexcept;
  [[nodiscard]] bool fetch_leads(Nanos now) noexcept;
  void lead(Load& load, std::uint64_t place) noexcept;
  [[nodiscard]] bool is_marker(const Load& load, const WorkingSet::Cursor& at) const noexcept;
  bool follow(const GuestAdapter& guest, Gfn page, Nanos now) noexcept;
  void load_some(Load& load, std::size_t most) noexcept;
  void load_again(const GuestAdapter& guest) noexcept;
  bool complete_some(Completion& completion, std::size_t most, Nanos now) noexcept;
  bool complete_page(GuestAdapter& guest, Gfn page, Nanos now) noexcept;
  void record(PageRange pages) noexcept;
  void want(GuestAdapter& guest, Gfn page, Nanos now) noexcept;
  [[nodiscard]] Deferred& deferred_of(const GuestAdapter& guest) noexcept;
  static void defer(Deferred& deferred, Gfn page) noexcept;
  void install(Gfn first, std::span<const std::byte> pages, Nanos now) noexcept;
  void settle(GuestAdapter& guest, Install verdict, PageRange range, std::uint32_t most,
              Nanos now) noexcept;
  [[nodiscard]] bool lacking(Gfn page) const noexcept;
  [[nodiscard]] bool unsettled(Gfn page) const noexcept;
  [[nodiscard]] PageRange inside(PageRange range) const noexcept;
  [[nodiscard]] std::vector<PageRange> inside(std::span<const PageRange> ranges) const;
  [[nodiscard]] bool fail_page(Gfn page) noexcept;

  ClientEngine& engine_;
  HostStats& stats_;
  std::uint32_t prefetch_pages_;
  KeptImage* kept_;
  std::vector<GuestAdapter*> guests_;
  ArrivalBuffer gathered_;
  std::vector<Deferred> deferred_;  // one a guest, so that none uses up the room of another
  std::vector<Gfn> retrying_;       // empty but for a moment
  std::vector<PageRange> list_;     // still to prefetch, the last first
  Nanos rest_at_ = Nanos::max();
  WorkingSet working_set_;
  WorkingSet::Cursor rest_;  // fetched until there, whoever has a lead
  std::vector<Load> loads_;  // one a guest
  std::vector<Completion> completions_;
  std::vector<Wait> waits_;  // for their times; as many as there is room for
  std::vector<PageRange> recorded_;
  std::vector<bool> is_recorded_;
};

}  // namespace snowfabric
