// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/presence.hpp"
#include "memtap-dpdk/guest_adapter.hpp"
#include "sim/judge.hpp"
#include "sim/test_image.hpp"

namespace snowfabric::sim {

/// A clone in virtual time: vCPUs that touch pages, each in its order, and wait for what is absent.
/// Every page it is given is compared with the image at once. Its presence bitmap outlives its
/// memtap, as a real one does.
class Guest final : public GuestAdapter {
 public:
  /// @param image, judge  borrowed
  Guest(std::string name, const TestImage& image, Judge& judge, Nanos now);

  /// What a vCPU takes time for.
  struct Pace {
    Nanos think{0};  ///< between a touch and the next
    Nanos fault{0};  ///< more of that after a touch that had to wait: it is trapped, and woken
  };

  /// One more vCPU.
  void add_vcpu(std::vector<std::uint64_t> order, Pace pace);
  /// The vCPUs go on as far as they can. Every other call is at this time.
  void run(Nanos now);
  /// When a vCPU that waits for nothing touches its next page; kNeverComes: none does.
  [[nodiscard]] Nanos next_touch() const noexcept;
  /// A vCPU waits for a page that poll_faults() has not reported.
  [[nodiscard]] bool has_faults() const noexcept;
  static constexpr Nanos kNeverComes = Nanos::max();

  /// The guest gives a page back: it reads as zeros from here on, and is its own.
  void discard(Gfn page);
  /// Another memtap takes over: what was reported to the dead one is reported again.
  void forget_reports() noexcept;
  /// What its memtap has of the image, to be added to: every page that the guest is offered.
  /// @param kept  by page. Borrowed; nullptr: the memtap is dead
  void keep_in(std::vector<bool>* kept) noexcept { kept_ = kept; }
  /// Before it comes no memtap has it, and its vCPUs touch nothing.
  void come() noexcept { here_ = true; }
  [[nodiscard]] bool here() const noexcept { return here_; }
  /// Its vCPUs stand still; what they wait for comes nevertheless.
  void pause(Nanos until) noexcept;
  /// It is dead from here on.
  void die() noexcept { gone_ = true; }

  /// All vCPUs have touched all their pages.
  [[nodiscard]] bool done() const noexcept;
  [[nodiscard]] Nanos done_at() const noexcept { return done_at_; }
  /// A page could not be had, and it was told so.
  [[nodiscard]] bool failed() const noexcept { return failed_at_ != kNever; }
  [[nodiscard]] Nanos failed_at() const noexcept { return failed_at_; }
  /// The longest a vCPU has waited for a page, one that waits still among them.
  [[nodiscard]] Nanos longest_wait(Nanos now) const noexcept;
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn page) const noexcept override;
  FailMeans fail(Gfn page) noexcept override;
  bool kill() noexcept override;
  [[nodiscard]] bool gone() const noexcept override { return gone_; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return {}; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

  /// The next so many installs are put off, as if the guest were giving pages back.
  unsigned nb_busy = 0;

 private:
  struct Vcpu {
    std::vector<std::uint64_t> order;
    Pace pace;
    std::size_t next = 0;
    Nanos ready_at{0};
    Nanos waits_since = kNever;
    bool reported = false;
    [[nodiscard]] bool waits() const noexcept { return waits_since != kNever; }
    [[nodiscard]] Gfn page() const noexcept { return Gfn{order[next]}; }
  };

  void run(Vcpu& vcpu);
  void touched(Vcpu& vcpu, Nanos took);
  void take(Gfn page, const std::byte* bytes);
  void wake(Gfn page);
  void broken(Breach kind, Gfn page, const char* what);

  std::string name_;
  const TestImage& image_;
  Judge& judge_;
  std::vector<Presence::Word> words_;
  Presence presence_;
  std::vector<bool>* kept_ = nullptr;
  std::vector<bool> has_;  // what the bitmap must say, kept apart from it: present or its own
  std::vector<Vcpu> vcpus_;
  GuestCounters counters_;
  Nanos now_, paused_until_{0}, done_at_ = kNever, failed_at_ = kNever, longest_wait_{0};
  bool here_ = false, gone_ = false;
};

}  // namespace snowfabric::sim
