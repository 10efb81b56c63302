// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "memtap-dpdk/guest_adapter.hpp"

namespace snowfabric::test {

/// A guest without a kernel: memory is a vector, faults and verdicts are scripted. It keeps the
/// adapter's promises: a page is reported once until it is settled, a failed install claims none.
class FakeGuest final : public GuestAdapter {
 public:
  explicit FakeGuest(std::uint64_t nb_pages)
      : memory(nb_pages * kPageSize, std::byte{0xee}),
        words_(Presence::words_for(nb_pages)),
        presence_{words_, nb_pages} {}

  /// A vCPU touches a page. Repeats of a page already waited for are the adapter's to swallow.
  void touch(std::uint64_t gfn) {
    if (presence_.state(Gfn{gfn}) == PageState::kPresent || waiting[gfn]) return;
    waiting[gfn] = true;
    faults_.push_back(Gfn{gfn});
  }
  /// The guest claims a page for itself: it reads as zeros.
  void claim(std::uint64_t gfn) { presence_.discard(Gfn{gfn}); }

  std::size_t poll_faults(std::span<Gfn> out) noexcept override {
    std::size_t nb_faults = 0;
    for (; nb_faults < out.size() && !faults_.empty(); faults_.pop_front())
      out[nb_faults++] = faults_.front();
    return nb_faults;
  }
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override {
    return put(first, pages.size() / kPageSize, pages.data());
  }
  Install install_zeros(PageRange range) noexcept override {
    return put(range.first, range.nb_pages, nullptr);
  }
  [[nodiscard]] bool waits(Gfn page) const noexcept override {
    const auto found = waiting.find(page.value);
    return found != waiting.end() && found->second;
  }
  FailMeans fail(Gfn page) noexcept override {
    if (fail_verdict == FailMeans::kAgain) return fail_verdict;
    waiting[page.value] = false;
    if (!presence_.claim(page, PageState::kClaimedByMemtap)) return FailMeans::kNotNeeded;
    presence_.mark_present(page);
    failed.push_back(page.value);
    return fail_verdict;
  }
  bool kill() noexcept override { return false; }
  [[nodiscard]] bool gone() const noexcept override { return false; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return {}; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }
  [[nodiscard]] bool is_loader() const noexcept override { return loads; }

  [[nodiscard]] bool has(std::uint64_t gfn) const {
    return presence_.state(Gfn{gfn}) == PageState::kPresent;
  }
  [[nodiscard]] std::span<const std::byte> page(std::uint64_t gfn) const {
    return std::span{memory}.subspan(gfn * kPageSize, kPageSize);
  }
  [[nodiscard]] bool anybody_waits() const {
    for (const auto& [gfn, waits] : waiting)
      if (waits) return true;
    return false;
  }

  struct Call {
    std::uint64_t first;
    std::size_t nb_pages;
    bool operator==(const Call&) const = default;
  };
  bool loads = false;  ///< device state, and is no clone
  std::vector<std::byte> memory;
  std::map<std::uint64_t, bool> waiting;  ///< pages a vCPU waits for
  std::vector<Call> calls;                ///< installs, in order
  std::vector<std::uint64_t> failed;
  std::deque<Install> verdicts;  ///< of the next installs that are not kDone; nothing is put
  FailMeans fail_verdict = FailMeans::kPoisoned;

 private:
  Install put(Gfn first, std::size_t nb_pages, const std::byte* bytes) noexcept {
    calls.push_back({first.value, nb_pages});
    if (!verdicts.empty()) {
      const Install verdict = verdicts.front();
      verdicts.pop_front();
      if (verdict != Install::kDone) return verdict;
    }
    for (std::size_t i = 0; i < nb_pages; ++i) {
      const Gfn page{first.value + i};
      waiting[page.value] = false;  // also of a page that is the guest's: woken
      if (!presence_.claim(page, PageState::kClaimedByMemtap)) continue;
      std::byte* to = memory.data() + page.value * kPageSize;
      if (bytes == nullptr)
        std::memset(to, 0, kPageSize);
      else
        std::memcpy(to, bytes + i * kPageSize, kPageSize);
      presence_.mark_present(page);
    }
    return Install::kDone;
  }

  std::vector<Presence::Word> words_;
  Presence presence_;
  std::deque<Gfn> faults_;
  GuestCounters counters_;
};

}  // namespace snowfabric::test
