// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// What one clone knows of one page. Two bits in shared memory: bit 0 is memtap's claim, bit 1 the
/// guest's; both set means present. docs/adr/0007 says why one word holds both.
enum class PageState : std::uint8_t {
  kAbsent = 0b00,
  kClaimedByMemtap = 0b01,  ///< being installed; after a memtap restart it is fetched again
  kClaimedByGuest = 0b10,   ///< will be overwritten or was discarded: reads as zeros, never fetched
  kPresent = 0b11,
};

/// View of a presence bitmap: 32 pages a 64-bit word, shared between memtap, guest agent and
/// hypervisor glue. Any thread or process may call any function; each is one atomic operation.
class Presence {
 public:
  using Word = std::atomic<std::uint64_t>;
  static constexpr std::size_t kPagesPerWord = 32;
  static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

  [[nodiscard]] static constexpr std::size_t words_for(std::size_t nb_pages) noexcept {
    return (nb_pages + kPagesPerWord - 1) / kPagesPerWord;
  }

  Presence() = default;
  /// @param words  words_for(nb_pages) words, zero = all absent; must outlive the view
  Presence(std::span<Word> words, std::size_t nb_pages) noexcept
      : words_{words}, nb_pages_{nb_pages} {}

  [[nodiscard]] std::size_t nb_pages() const noexcept { return nb_pages_; }

  [[nodiscard]] PageState state(Gfn page) const noexcept {
    return at(word(page).load(std::memory_order_acquire), page);
  }
  [[nodiscard]] bool absent(Gfn page) const noexcept { return state(page) == PageState::kAbsent; }

  /// Absent -> claimed. Exactly one of several concurrent callers gets true.
  [[nodiscard]] bool claim(Gfn page, PageState claimant) noexcept {
    return exchange(page, PageState::kAbsent, claimant);
  }
  /// Memtap's claim -> present; release, so that whoever sees it also sees the page's bytes.
  /// @return false if the page was discarded since the claim: it stays the guest's
  bool mark_present(Gfn page) noexcept {
    return exchange(page, PageState::kClaimedByMemtap, PageState::kPresent);
  }
  /// Memtap's claim -> absent, after an install that failed.
  /// @return false if the page was discarded since the claim: it stays the guest's
  bool unclaim(Gfn page) noexcept {
    return exchange(page, PageState::kClaimedByMemtap, PageState::kAbsent);
  }
  /// The guest's -> present, once it has its zeros. @return false if it was not the guest's
  bool fill(Gfn page) noexcept {
    return exchange(page, PageState::kClaimedByGuest, PageState::kPresent);
  }
  /// Any state -> claimed by the guest: its content is gone, it reads as zeros from now on.
  void discard(Gfn page) noexcept {
    std::uint64_t old = word(page).load(std::memory_order_relaxed);
    while (!word(page).compare_exchange_weak(old, with(old, page, PageState::kClaimedByGuest),
                                             std::memory_order_acq_rel)) {
    }
  }
  /// discard() of every page of a range, whole words at a time: a balloon gives back gigabytes.
  void discard(PageRange pages) noexcept {
    constexpr std::uint64_t kAllGuests = 0xaaaa'aaaa'aaaa'aaaaULL;
    const std::uint64_t end = pages.first.value + pages.nb_pages;
    for (std::uint64_t i = pages.first.value; i < end;) {
      if (i % kPagesPerWord == 0 && end - i >= kPagesPerWord) {
        word(Gfn{i}).store(kAllGuests, std::memory_order_release);
        i += kPagesPerWord;
      } else {
        discard(Gfn{i++});
      }
    }
  }

  /// Every page memtap had claimed and not installed -> absent. For a memtap that takes over after
  /// the death of another: those pages are fetched again.
  void unclaim_all() noexcept {
    for (std::uint64_t i = 0; i < nb_pages_; ++i) unclaim(Gfn{i});
  }
  /// Pages in one state. Control path: walks the whole bitmap.
  [[nodiscard]] std::size_t count(PageState wanted) const noexcept {
    std::size_t nb_pages = 0;
    for (std::uint64_t i = 0; i < nb_pages_; ++i)
      if (state(Gfn{i}) == wanted) ++nb_pages;
    return nb_pages;
  }

 private:
  static unsigned shift(Gfn page) noexcept {
    return static_cast<unsigned>(page.value % kPagesPerWord) * 2;
  }
  static PageState at(std::uint64_t word, Gfn page) noexcept {
    return static_cast<PageState>((word >> shift(page)) & 0b11U);
  }
  static std::uint64_t with(std::uint64_t word, Gfn page, PageState state) noexcept {
    const std::uint64_t mask = std::uint64_t{0b11} << shift(page);
    return (word & ~mask) | (std::uint64_t{static_cast<std::uint8_t>(state)} << shift(page));
  }
  /// The only way between two states that a guest may change under us.
  bool exchange(Gfn page, PageState from, PageState to) noexcept {
    std::uint64_t old = word(page).load(std::memory_order_relaxed);
    do {
      if (at(old, page) != from) return false;
    } while (
        !word(page).compare_exchange_weak(old, with(old, page, to), std::memory_order_acq_rel));
    return true;
  }
  [[nodiscard]] Word& word(Gfn page) const noexcept { return words_[page.value / kPagesPerWord]; }

  std::span<Word> words_;
  std::size_t nb_pages_ = 0;
};

}  // namespace snowfabric
