// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/repairs.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "fabric/crc32c.hpp"

namespace snowfabric {
namespace {

constexpr std::array<std::byte, kPageSize> kZeroPage{};

bool in(PageRange pages, Gfn page) noexcept {
  return page.value - pages.first.value < pages.nb_pages;  // below it wraps
}

}  // namespace

Repairs::Repairs(ClientEngine& engine) noexcept
    : engine_{engine}, stats_{engine.stats()}, prng_{~engine.config().seed} {}

// --- what siblings ask -------------------------------------------------------------------------

void Repairs::serve(const RepairSource* source) noexcept {
  source_ = source;
  nb_entries_ = fragment_ = 0;
  find_due();
}

void Repairs::on_request(const wire::Frame& frame, Nanos now) noexcept {
  if (source_ == nullptr) return;
  forget_old(now);
  bool has_room = true;
  std::size_t looks = kMaxLooks;
  for (std::size_t i = 0; i < frame.nb_wants() && has_room; ++i) {
    const wire::WantEntry want = frame.want(i);
    const std::uint64_t end =
        std::min(want.first.host() + want.nb_pages.host(), engine_.nb_pages());
    for (Gfn page{want.first.host()}; page.value < end && has_room; ++page.value)
      has_room = looks-- != 0 && add(page, want, now);
  }
  find_due();
}

/// What was sent a moment ago is under way still, unless it is asked for once more.
/// @return false: there is no room. Its asker retries
bool Repairs::add(Gfn page, const wire::WantEntry& want, Nanos now) noexcept {
  if (!source_->knows(page)) return true;
  const auto priority = static_cast<wire::Priority>(want.priority);
  Entry* entry = find(page);
  if (entry == nullptr) {
    entry = room_for(priority);
    if (entry == nullptr) return false;
  } else if (!entry->sent) {
    entry->priority = std::min(entry->priority, priority);
    return true;
  } else if ((want.flags & wire::kWantRetry) == 0 || now < entry->at - kSpread + kUnderWay) {
    return true;
  }
  *entry = {.page = page, .at = now + prng_.below(kSpread), .priority = priority};
  return true;
}

/// A demand displaces what was sent, or a prefetch. @return nullptr: there is none
Repairs::Entry* Repairs::room_for(wire::Priority priority) noexcept {
  if (nb_entries_ < entries_.size()) return &entries_[nb_entries_++];
  if (priority != wire::Priority::kDemand) return nullptr;
  const auto found = std::ranges::find_if(entries_, [](const Entry& entry) {
    return entry.sent || entry.priority == wire::Priority::kPrefetch;
  });
  return found == entries_.end() ? nullptr : &*found;
}

void Repairs::mark_sent(Entry& entry, Nanos now) noexcept {
  entry.sent = true;
  entry.at = now + kSpread;
}

/// What is not what is kept here has helped nobody, and silences nobody.
void Repairs::on_page(const wire::Frame& frame, Nanos now) noexcept {
  const wire::PageBody& body = frame.page;
  const Gfn page{body.gfn.host()};
  if (matters(frame.flags) && source_->knows(page)) {
    const PageBytes kept = kept_bytes(page);
    const std::size_t at = body.fragment * wire::fragment_stride(body.nb_fragments);
    if (std::memcmp(kept.data() + at, frame.tail.data(), frame.tail.size()) != 0 ||
        body.crc32c.host() != crc32c(kept))
      return;
  }
  on_sent({page, 1}, frame.flags, now);
}

void Repairs::on_zeros(PageRange pages, std::uint8_t flags, Nanos now) noexcept {
  const auto differs = [this](Gfn page) {
    return source_->knows(page) && !std::ranges::equal(kept_bytes(page), kZeroPage);
  };
  if (matters(flags)) {
    if (differs(pages.first)) return;
    for (const Entry& entry : std::span{entries_}.first(nb_entries_))
      if (!entry.sent && in(pages, entry.page) && differs(entry.page)) return;
  }
  on_sent(pages, flags, now);
}

/// Looking at bytes is for when something is owed, or the server silent.
bool Repairs::matters(std::uint8_t flags) const noexcept {
  return source_ != nullptr && ((flags & wire::kFlagSibling) != 0 || due_at_ != Nanos::max());
}

Repairs::PageBytes Repairs::kept_bytes(Gfn page) const noexcept {
  return source_->bytes(page).value_or(kZeroPage);
}

/// What a sibling sent is remembered though nobody has asked for it here: the question may be under
/// way. And all siblings share one budget.
void Repairs::on_sent(PageRange pages, std::uint8_t flags, Nanos now) noexcept {
  const bool by_sibling = (flags & wire::kFlagSibling) != 0;
  if (by_sibling) {
    free_at_ = std::max(free_at_, now + kSpacing);
    if (pages.nb_pages == 1 && nb_entries_ < entries_.size() && find(pages.first) == nullptr)
      entries_[nb_entries_++] = {.page = pages.first, .at = now + kSpread, .sent = true};
  }
  if (due_at_ == Nanos::max()) return;                             // as ever
  if (!by_sibling && (flags & wire::kFlagSequenced) == 0) return;  // others have not got it
  for (Entry& entry : std::span{entries_}.first(nb_entries_)) {
    if (entry.sent || !in(pages, entry.page)) continue;
    mark_sent(entry, now);
    stats_.repairs_left.add(1);
  }
  find_due();
}

Repairs::Entry* Repairs::find(Gfn page) noexcept {
  const auto entries = std::span{entries_}.first(nb_entries_);
  const auto found = std::ranges::find(entries, page, &Entry::page);
  return found == entries.end() ? nullptr : &*found;
}

void Repairs::forget_old(Nanos now) noexcept {
  for (std::size_t i = nb_entries_; i-- > 0;)
    if (entries_[i].sent && entries_[i].at <= now) entries_[i] = entries_[--nb_entries_];
}

void Repairs::find_due() noexcept {
  due_at_ = fragment_ != 0 ? Nanos{0} : Nanos::max();
  for (const Entry& entry : std::span{entries_}.first(nb_entries_))
    if (!entry.sent) due_at_ = std::min(due_at_, entry.at);
}

// --- what is sent ------------------------------------------------------------------------------

std::size_t Repairs::next(std::span<std::byte> out, Nanos now) noexcept {
  if (!has_output(now)) return 0;
  if (fragment_ >= engine_.nb_fragments()) fragment_ = 0;  // the server came back with another MTU
  const std::size_t size = write_next(out, now);
  free_at_ = now + kSpacing;
  find_due();
  return size;
}

/// Demands first.
std::size_t Repairs::write_next(std::span<std::byte> out, Nanos now) noexcept {
  if (fragment_ != 0)
    if (const auto bytes = source_->bytes(page_)) return write_page(out, *bytes);
  Entry* first = nullptr;
  for (Entry& entry : std::span{entries_}.first(nb_entries_))
    if (!entry.sent && entry.at <= now &&
        (first == nullptr ||
         std::pair{entry.priority, entry.at} < std::pair{first->priority, first->at}))
      first = &entry;
  if (first == nullptr) return 0;
  page_ = first->page;
  mark_sent(*first, now);
  if (const auto bytes = source_->bytes(page_)) {
    crc32c_ = crc32c(*bytes);
    const std::size_t size = write_page(out, *bytes);
    if (size != 0) stats_.tx_repairs.add(1);
    return size;
  }
  const PageRange zeros = source_->zero_run(page_);
  for (Entry& entry : std::span{entries_}.first(nb_entries_))
    if (in(zeros, entry.page)) mark_sent(entry, now);
  stats_.tx_repairs.add(zeros.nb_pages);
  const wire::Identity& who = engine_.identity();
  return wire::write_ranges(out, wire::FrameType::kZeros, who, group_address(who.image_id),
                            engine_.config().mac, {&zeros, 1}, wire::kFlagSibling, 0);
}

std::size_t Repairs::write_page(std::span<std::byte> out,
                                std::span<const std::byte, kPageSize> bytes) noexcept {
  const std::size_t nb_fragments = engine_.nb_fragments();
  const std::span<const std::byte> part =
      std::span<const std::byte>{bytes}.subspan(fragment_ * wire::fragment_stride(nb_fragments),
                                                wire::fragment_bytes(fragment_, nb_fragments));
  if (out.size() < wire::kPageHeaderBytes + part.size()) {
    fragment_ = 0;
    return 0;
  }
  const wire::Identity& who = engine_.identity();
  const std::size_t header =
      wire::write_page_header(out, who, group_address(who.image_id), engine_.config().mac, page_,
                              crc32c_, fragment_, nb_fragments, wire::kFlagSibling, 0);
  std::memcpy(out.data() + header, part.data(), part.size());
  fragment_ = (fragment_ + 1) % nb_fragments;
  return header + part.size();
}

}  // namespace snowfabric
