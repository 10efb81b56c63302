// SPDX-License-Identifier: BSD-3-Clause
#include "sim/guest.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

namespace snowfabric::sim {

Guest::Guest(std::string name, const TestImage& image, Judge& judge, Nanos now)
    : name_{std::move(name)},
      image_{image},
      judge_{judge},
      words_(Presence::words_for(image.nb_pages)),
      presence_{words_, image.nb_pages},
      has_(image.nb_pages),
      now_{now} {}

void Guest::add_vcpu(std::vector<std::uint64_t> order, Pace pace) {
  vcpus_.push_back({.order = std::move(order), .pace = pace, .ready_at = now_});
}

void Guest::broken(Breach kind, Gfn page, const char* what) {
  judge_.broken(kind, fmt::format("{} ns: {}, page {}: {}", now_.count(), name_, page.value, what));
}

// --- vCPUs -----------------------------------------------------------------------------------

void Guest::run(Nanos now) {
  now_ = now;
  if (!here_ || gone_ || failed()) return;
  for (Vcpu& vcpu : vcpus_) run(vcpu);
  if (done_at_ == kNever && done()) done_at_ = now;
}

void Guest::run(Vcpu& vcpu) {
  while (!vcpu.waits() && vcpu.next < vcpu.order.size() && vcpu.ready_at <= now_) {
    const PageState state = presence_.state(vcpu.page());
    if (state == PageState::kPresent || state == PageState::kClaimedByGuest) {
      if (!has_[vcpu.page().value])
        broken(Breach::kBitmap, vcpu.page(), "the bitmap has it, the guest has not");
      touched(vcpu, {});
    } else {
      vcpu.waits_since = now_;
      vcpu.reported = false;
    }
  }
}

void Guest::touched(Vcpu& vcpu, Nanos took) {
  ++vcpu.next;
  vcpu.ready_at = std::max(now_ + took + vcpu.pace.think, paused_until_);
  vcpu.waits_since = kNever;
}

Nanos Guest::next_touch() const noexcept {
  Nanos next = kNeverComes;
  if (!here_ || gone_ || failed()) return next;
  for (const Vcpu& vcpu : vcpus_)
    if (!vcpu.waits() && vcpu.next < vcpu.order.size()) next = std::min(next, vcpu.ready_at);
  return next;
}

bool Guest::has_faults() const noexcept {
  return !gone_ && !failed() && std::ranges::any_of(vcpus_, [](const Vcpu& vcpu) {
    return vcpu.waits() && !vcpu.reported;
  });
}

bool Guest::done() const noexcept {
  return std::ranges::all_of(vcpus_, [](const Vcpu& v) { return v.next == v.order.size(); });
}

Nanos Guest::longest_wait(Nanos now) const noexcept {
  Nanos longest = longest_wait_;
  if (gone_ || failed()) return longest;
  for (const Vcpu& vcpu : vcpus_)
    if (vcpu.waits()) longest = std::max(longest, now - vcpu.waits_since);
  return longest;
}

void Guest::pause(Nanos until) noexcept {
  paused_until_ = std::max(paused_until_, until);
  for (Vcpu& vcpu : vcpus_) vcpu.ready_at = std::max(vcpu.ready_at, paused_until_);
}

void Guest::discard(Gfn page) {
  presence_.discard(page);
  has_[page.value] = true;
  wake(page);
}

void Guest::forget_reports() noexcept {
  for (Vcpu& vcpu : vcpus_) vcpu.reported = false;
}

void Guest::wake(Gfn page) {
  for (Vcpu& vcpu : vcpus_) {
    if (!vcpu.waits() || vcpu.page() != page) continue;
    longest_wait_ = std::max(longest_wait_, now_ - vcpu.waits_since);
    touched(vcpu, vcpu.pace.fault);
  }
}

// --- what memtap calls -----------------------------------------------------------------------

std::size_t Guest::poll_faults(std::span<Gfn> out) noexcept {
  std::size_t nb_faults = 0;
  if (gone_ || failed()) return 0;
  for (Vcpu& vcpu : vcpus_) {
    if (nb_faults == out.size()) break;
    if (!vcpu.waits() || vcpu.reported) continue;
    const bool repeated = std::ranges::any_of(vcpus_, [&](const Vcpu& other) {
      return other.waits() && other.reported && other.page() == vcpu.page();
    });
    vcpu.reported = true;
    if (repeated) continue;
    out[nb_faults++] = vcpu.page();
    counters_.faults.add(1);
  }
  return nb_faults;
}

Install Guest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  if (gone_) return Install::kGone;
  if (nb_busy > 0) {
    --nb_busy;
    return Install::kAgain;
  }
  for (std::uint64_t i = 0; i < pages.size() / kPageSize; ++i)
    take(Gfn{first.value + i}, pages.data() + i * kPageSize);
  return Install::kDone;
}

Install Guest::install_zeros(PageRange pages) noexcept {
  if (gone_) return Install::kGone;
  if (nb_busy > 0) {
    --nb_busy;
    return Install::kAgain;
  }
  for (std::uint64_t i = 0; i < pages.nb_pages; ++i) take(Gfn{pages.first.value + i}, nullptr);
  return Install::kDone;
}

/// @param bytes  of the page, or nullptr for zeros
void Guest::take(Gfn page, const std::byte* bytes) {
  if (page.value >= image_.nb_pages) return broken(Breach::kBytes, page, "is not in the image");
  if (kept_ != nullptr) (*kept_)[page.value] = true;
  if (!presence_.claim(page, PageState::kClaimedByMemtap)) {
    counters_.skipped_pages.add(1);
    return wake(page);
  }
  if (has_[page.value]) broken(Breach::kTwice, page, "installed twice, or over the guest's own");
  const bool right = bytes != nullptr ? std::memcmp(bytes, image_.page(page).data(), kPageSize) == 0
                                      : image_.is_zero(page);
  if (!right) broken(Breach::kBytes, page, "installed with wrong bytes");
  (bytes != nullptr ? counters_.installed_pages : counters_.zero_pages).add(1);
  has_[page.value] = true;
  presence_.mark_present(page);
  wake(page);
}

bool Guest::waits(Gfn page) const noexcept {
  return !gone_ && std::ranges::any_of(vcpus_, [page](const Vcpu& vcpu) {
    return vcpu.waits() && vcpu.reported && vcpu.page() == page;
  });
}

FailMeans Guest::fail(Gfn page) noexcept {
  if (gone_) return FailMeans::kGone;
  if (!waits(page)) return FailMeans::kNotNeeded;
  longest_wait_ = longest_wait(now_);
  failed_at_ = now_;
  counters_.poisoned_pages.add(1);
  return FailMeans::kPoisoned;
}

bool Guest::kill() noexcept {
  counters_.kills.add(1);
  return !std::exchange(gone_, true);
}

}  // namespace snowfabric::sim
