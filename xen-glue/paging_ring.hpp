// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric::xen {

/// Layout of the page that Xen and the pager share. Source: xen/include/public/vm_event.h and
/// io/ring.h; libxen_calls.cpp holds these numbers to those of the headers.
/// @{
inline constexpr std::size_t kRingSlots = 8;
inline constexpr std::size_t kRingSlotBytes = 400;
inline constexpr std::size_t kRingSlotsAt = 64;
inline constexpr std::uint32_t kVmEventVersion = 7;
inline constexpr std::uint32_t kVmEventPaging = 3;      ///< RingSlot::reason
inline constexpr std::uint32_t kVcpuPaused = 1U << 0U;  ///< RingSlot::flags
inline constexpr std::uint32_t kDropPage = 1U << 0U;    ///< RingSlot::paging_flags

struct RingSlot {
  std::uint32_t version;
  std::uint32_t flags;
  std::uint32_t reason;
  std::uint32_t vcpu;
  std::uint64_t reserved;
  std::uint64_t gfn;
  std::uint32_t p2m_type;
  std::uint32_t paging_flags;
  std::array<std::byte, kRingSlotBytes - 40> unused;
};
static_assert(sizeof(RingSlot) == kRingSlotBytes && std::is_trivially_copyable_v<RingSlot>);
/// @}

/// What the pager notes behind the slots, where Xen does not look, for whoever still maps the page
/// when it has died.
struct RingNote {
  std::uint32_t nb_taken;  ///< requests, and wraps as they do
  std::uint32_t reserved;
  /// Gfn + 1 of requests that were taken and whose page is not there yet; 0: of none.
  std::array<std::uint64_t, kRingSlots> asked;
};
inline constexpr std::size_t kRingNoteAt = kRingSlotsAt + kRingSlots * kRingSlotBytes;
static_assert(kRingNoteAt + sizeof(RingNote) <= kPageSize);

/// What Xen asks the pager.
struct PagingRequest {
  Gfn page;
  std::uint32_t vcpu = 0;
  std::uint32_t flags = 0;
  std::uint32_t p2m_type = 0;
  std::uint32_t paging_flags = 0;

  /// The guest replaced or gave back the page: its bytes are no longer wanted.
  [[nodiscard]] bool dropped() const noexcept { return (paging_flags & kDropPage) != 0; }
  /// A vCPU of the guest waits; else somebody of another domain tries again and again.
  [[nodiscard]] bool holds_vcpu() const noexcept { return (flags & kVcpuPaused) != 0; }
};

/// The pager's end of the ring. Every request taken is owed one answer: until it has it, Xen keeps
/// its slot and the vCPU paused. Answers may come in any order. Trusts nothing it reads there.
/// Neither allocates nor calls Xen. One thread.
class PagingRing {
 public:
  enum class Take : std::uint8_t {
    kNone,     ///< no request waits
    kRequest,  ///< `out` is filled
    kBroken,   ///< no such ring: more requests than slots, or of another kind; it stays so
  };

  /// Makes an empty ring of the page. @pre Xen does not use it yet
  /// @param page  shared; must outlive the ring
  explicit PagingRing(std::span<std::byte, kPageSize> page) noexcept;

  [[nodiscard]] Take take(PagingRequest& out) noexcept;
  /// Lets the vCPU of a taken request try again, once published. @pre nb_unanswered() > 0
  /// @param is_there  the page; else it stays noted as asked for
  void answer(const PagingRequest& request, bool is_there) noexcept;
  /// Lets a vCPU try again whose request was taken from a ring that is gone. Such answers are
  /// beyond Xen's count of slots: this ring is then only to be published, and thrown away.
  /// @pre at most kRingSlots, and nothing else, before publish()
  void release(std::uint32_t vcpu) noexcept;
  /// @return whether there was an answer to publish: Xen is to be notified
  [[nodiscard]] bool publish() noexcept;

  /// Answers all that waits in a ring whose pager is dead, for Xen to take: see
  /// XenCalls::paging_resume.
  /// @param asked  gets the pages that left_asked() no longer tells of
  /// @return how many waited; at kRingSlots somebody may wait for room
  static std::size_t drain(std::span<std::byte, kPageSize> page, std::vector<Gfn>& asked);
  /// Of a ring whose pager is dead: pages that were asked for, and whether they have come since
  /// nobody knows. @pre Xen writes no more: the domain is paused
  [[nodiscard]] static std::vector<Gfn> left_asked(std::span<const std::byte, kPageSize> page);

  /// Whether, since the publish() before the last, more may have waited at once than there are
  /// slots: Xen counts those that it has not been told the answer of. @pre it knows of the last
  [[nodiscard]] bool was_full() const noexcept;
  /// Requests taken; at most kRingSlots.
  [[nodiscard]] std::size_t nb_unanswered() const noexcept { return taken_ - answered_; }

 private:
  [[nodiscard]] std::byte* slot(std::uint32_t index) const noexcept {
    return page_.data() + kRingSlotsAt + index % kRingSlots * kRingSlotBytes;
  }
  [[nodiscard]] RingNote& note() const noexcept {
    return *reinterpret_cast<RingNote*>(page_.data() + kRingNoteAt);
  }
  [[nodiscard]] std::uint32_t& word(std::size_t index) const noexcept;

  std::span<std::byte, kPageSize> page_;
  std::uint32_t taken_ = 0, answered_ = 0, published_ = 0, told_before_ = 0;  // wrap like Xen's
  bool broken_ = false;
};

}  // namespace snowfabric::xen
