// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/paging_ring.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace snowfabric::xen {
namespace {

// Words at the front of the page.
constexpr std::size_t kRequestsProduced = 0;
constexpr std::size_t kRequestEvent = 1;
constexpr std::size_t kAnswersProduced = 2;
constexpr std::size_t kAnswerEvent = 3;

std::uint32_t& word_of(std::span<std::byte, kPageSize> page, std::size_t index) noexcept {
  return reinterpret_cast<std::uint32_t*>(page.data())[index];
}

/// Pages asked for by the requests [from, to), at most those that there is room for.
void append_asked(std::span<const std::byte, kPageSize> page, std::uint32_t from, std::uint32_t to,
                  std::vector<Gfn>& asked) {
  for (; from != to && to - from <= kRingSlots; ++from) {
    RingSlot request;
    std::memcpy(&request, page.data() + kRingSlotsAt + from % kRingSlots * kRingSlotBytes,
                sizeof request);
    if ((request.paging_flags & kDropPage) == 0) asked.push_back({request.gfn});
  }
}

}  // namespace

PagingRing::PagingRing(std::span<std::byte, kPageSize> page) noexcept : page_{page} {
  std::memset(page.data(), 0, page.size());
  word(kRequestEvent) = 1;
  word(kAnswerEvent) = 1;
}

std::uint32_t& PagingRing::word(std::size_t index) const noexcept { return word_of(page_, index); }

bool PagingRing::was_full() const noexcept {
  const std::uint32_t produced =
      std::atomic_ref{word(kRequestsProduced)}.load(std::memory_order_acquire);
  return static_cast<std::int32_t>(produced - told_before_) >= std::int32_t{kRingSlots};
}

PagingRing::Take PagingRing::take(PagingRequest& out) noexcept {
  if (broken_) return Take::kBroken;
  const std::uint32_t produced =
      std::atomic_ref{word(kRequestsProduced)}.load(std::memory_order_acquire);
  if (produced == taken_) return Take::kNone;
  if (produced - taken_ > kRingSlots - nb_unanswered()) {  // also if it went backwards
    broken_ = true;
    return Take::kBroken;
  }
  RingSlot request;  // checked and used where nobody else writes
  std::memcpy(&request, slot(taken_), sizeof request);
  if (request.version != kVmEventVersion || request.reason != kVmEventPaging) {
    broken_ = true;
    return Take::kBroken;
  }
  // Noted first: of a page too many no harm comes.
  const auto free = std::ranges::find(note().asked, 0U);
  const bool is_wanted = (request.paging_flags & kDropPage) == 0;
  if (is_wanted && free != note().asked.end()) *free = request.gfn + 1;
  std::atomic_ref{note().nb_taken}.store(++taken_, std::memory_order_release);
  std::atomic_ref{word(kRequestEvent)}.store(taken_ + 1, std::memory_order_relaxed);
  out = {.page = {request.gfn},
         .vcpu = request.vcpu,
         .flags = request.flags,
         .p2m_type = request.p2m_type,
         .paging_flags = request.paging_flags};
  return Take::kRequest;
}

void PagingRing::answer(const PagingRequest& request, bool is_there) noexcept {
  const auto noted = std::ranges::find(note().asked, request.page.value + 1);
  if (is_there && noted != note().asked.end()) *noted = 0;
  const RingSlot answer{.version = kVmEventVersion,
                        .flags = request.flags,
                        .reason = kVmEventPaging,
                        .vcpu = request.vcpu,
                        .reserved = 0,
                        .gfn = request.page.value,
                        .p2m_type = request.p2m_type,
                        .paging_flags = request.paging_flags,
                        .unused = {}};
  // An answer takes the slot of the oldest request: that one was taken, so it is copied.
  std::memcpy(slot(answered_), &answer, sizeof answer);
  ++answered_;
}

/// Of a vCPU that does not wait Xen ignores it. Source: vm_event_resume() of xen/common/vm_event.c.
void PagingRing::release(std::uint32_t vcpu) noexcept {
  answer(
      {.page = {0}, .vcpu = vcpu, .flags = kVcpuPaused, .p2m_type = 0, .paging_flags = kDropPage},
      false);
}

/// What lies in a slot does for an answer: it is the request, or an answer that Xen has had. A vCPU
/// that gets none so waits until whoever takes over frees it.
std::size_t PagingRing::drain(std::span<std::byte, kPageSize> page, std::vector<Gfn>& asked) {
  auto& note = *reinterpret_cast<RingNote*>(page.data() + kRingNoteAt);
  const std::uint32_t produced =
      std::atomic_ref{word_of(page, kRequestsProduced)}.load(std::memory_order_acquire);
  append_asked(page, note.nb_taken, produced, asked);
  note.nb_taken = produced;
  const std::atomic_ref answered{word_of(page, kAnswersProduced)};
  const std::uint32_t nb_waited = produced - answered.load(std::memory_order_relaxed);
  answered.store(produced, std::memory_order_release);
  return std::min<std::size_t>(nb_waited, kRingSlots);
}

std::vector<Gfn> PagingRing::left_asked(std::span<const std::byte, kPageSize> page) {
  RingNote note;
  std::memcpy(&note, page.data() + kRingNoteAt, sizeof note);
  std::uint32_t produced = 0;
  std::memcpy(&produced, page.data(), sizeof produced);
  std::vector<Gfn> pages;
  for (const std::uint64_t asked : note.asked)
    if (asked != 0) pages.push_back({asked - 1});
  append_asked(page, note.nb_taken, produced, pages);
  std::ranges::sort(pages);
  const auto repeated = std::ranges::unique(pages);
  pages.erase(repeated.begin(), repeated.end());
  return pages;
}

bool PagingRing::publish() noexcept {
  if (published_ == answered_) return false;
  told_before_ = std::exchange(published_, answered_);
  std::atomic_ref{word(kAnswersProduced)}.store(answered_, std::memory_order_release);
  return true;
}

}  // namespace snowfabric::xen
