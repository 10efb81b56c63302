// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/guest_bitmap.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>

#include <fmt/format.h>

#include "fabric/base/parse_number.hpp"
#include "xen-glue/guest_bitmap_layout.h"

namespace snowfabric::xen {
namespace {

using Clock = std::chrono::steady_clock;
using Header = sf_bitmap_header;

constexpr auto kLookEvery = std::chrono::milliseconds{2};
static_assert(sizeof(Header) == SF_BITMAP_PRESENCE_AT);
static_assert(Presence::kPagesPerWord == SF_BITMAP_PAGES_PER_PRESENCE_WORD);

constexpr std::size_t kWordBytes = sizeof(std::uint64_t);

std::uint64_t free_words_for(std::uint64_t nb_pages) noexcept {
  return (nb_pages + SF_BITMAP_PAGES_PER_FREE_WORD - 1) / SF_BITMAP_PAGES_PER_FREE_WORD;
}
std::uint64_t free_words_at(std::uint64_t nb_pages) noexcept {
  return SF_BITMAP_PRESENCE_AT + Presence::words_for(nb_pages) * kWordBytes;
}

/// The next word of a line. @return nothing: it is no number
std::optional<std::uint64_t> take_number(std::string_view& line) {
  const std::string_view word = line.substr(0, line.find(' '));
  line.remove_prefix(std::min(line.size(), word.size() + 1));
  return parse_number(word, 10);
}

/// All of them, or an error.
Result<ForeignPages> map_all(const Domain& domain, PageRange where, Access access) {
  const std::vector<Gfn> pages = list_of(where);
  auto mapped = domain.map(pages, access);
  if (!mapped) return mapped;
  for (std::size_t i = 0; i < pages.size(); ++i)
    if (auto ok = domain.checked(mapped->error(i), "map the bitmap", pages[i]); !ok)
      return std::unexpected(ok.error());
  return mapped;
}

std::span<std::byte> bytes_of(const ForeignPages& pages) noexcept {
  return {pages.page(0).data(), pages.nb_pages() * kPageSize};
}

/// @return EPROTO: there is none of that size
Result<FreeWords> read_free_words(const Domain& domain, PageRange bitmap, std::uint64_t nb_pages) {
  const auto mapped = map_all(domain, bitmap, Access::kRead);
  if (!mapped) return std::unexpected(mapped.error());
  const std::span<const std::byte> bytes = bytes_of(*mapped);
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != SF_BITMAP_MAGIC || header.version != SF_BITMAP_VERSION ||
      header.nb_pages != nb_pages)
    return fail(EPROTO, fmt::format("{} has no bitmap of {} pages where its agent says",
                                    to_string(domain.id()), nb_pages));
  FreeWords words(free_words_for(nb_pages));
  std::memcpy(words.data(), bytes.data() + free_words_at(nb_pages), words.size() * kWordBytes);
  return words;
}

/// Printable, and not too long for a log.
std::string quoted(std::string_view text) {
  std::string out{text.substr(0, 200)};
  std::ranges::replace_if(out, [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

/// @return whether the answer to this question has come
Result<bool> look_for_answer(const Domain& domain, std::string_view token) {
  const auto answer = domain.store_read(SF_NODE_ANSWER);
  if (!answer) {
    if (answer.error().errnum == ENOENT) return false;
    return std::unexpected(answer.error());
  }
  if (!answer->starts_with(token)) return false;  // to an earlier one
  const std::string_view rest = std::string_view{*answer}.substr(token.size());
  if (rest == " ok") return true;
  return fail(ENOTSUP,
              fmt::format("{} does not say what is free:{}", to_string(domain.id()), quoted(rest)));
}

std::uint32_t random_generation() {
  std::random_device random;
  return std::max<std::uint32_t>(1, random());
}

}  // namespace

std::uint64_t bitmap_pages_for(std::uint64_t nb_pages) noexcept {
  const std::uint64_t nb_bytes = free_words_at(nb_pages) + free_words_for(nb_pages) * kWordBytes;
  return (nb_bytes + kPageSize - 1) / kPageSize;
}

Result<PageRange> announced_bitmap(const Domain& domain, std::uint64_t nb_pages) {
  const auto text = domain.store_read(SF_NODE_BITMAP);
  if (!text) return std::unexpected(text.error());
  std::string_view rest{*text};
  const auto first = take_number(rest);
  const auto nb_shared = take_number(rest);
  if (!first || nb_shared != bitmap_pages_for(nb_pages) || *first > nb_pages - *nb_shared)
    return fail(EPROTO, fmt::format("{} of {} = {}", SF_NODE_BITMAP, to_string(domain.id()),
                                    quoted(*text)));
  return PageRange{Gfn{*first}, static_cast<std::uint32_t>(*nb_shared)};
}

Result<FreeWords> ask_free_pages(const Domain& domain, PageRange bitmap, std::uint64_t nb_pages,
                                 std::chrono::milliseconds patience,
                                 const std::atomic<bool>* stop) {
  std::random_device random;
  const std::string token = fmt::format("{:08x}{:08x}", random(), random());
  if (const auto ok = domain.store_write(SF_NODE_ASK, token); !ok)
    return std::unexpected(ok.error());
  for (const auto deadline = Clock::now() + patience; Clock::now() < deadline;) {
    if (stop != nullptr && *stop) return fail(ECANCELED, "asking what is free");
    const auto answered = look_for_answer(domain, token);
    if (!answered) return std::unexpected(answered.error());
    if (*answered) return read_free_words(domain, bitmap, nb_pages);
    std::this_thread::sleep_for(kLookEvery);
  }
  return fail(ETIMEDOUT, fmt::format("{} was asked what is free", to_string(domain.id())));
}

void end_question(const Domain& domain) noexcept {
  // One that is gone has no agent either.
  [[maybe_unused]] const auto ended = domain.store_write(SF_NODE_ASK, "");
}

Result<GuestBitmap> GuestBitmap::map(const Domain& domain, PageRange where,
                                     std::uint64_t nb_pages) {
  if (where.nb_pages != bitmap_pages_for(nb_pages))
    return fail(EINVAL,
                fmt::format("a bitmap of {} pages for {} of RAM", where.nb_pages, nb_pages));
  auto pages = map_all(domain, where, Access::kReadWrite);
  if (!pages) return std::unexpected(pages.error());
  return GuestBitmap{std::move(*pages), nb_pages};
}

Result<GuestBitmap> GuestBitmap::reset(const Domain& domain, PageRange where,
                                       std::uint64_t nb_pages) {
  auto bitmap = map(domain, where, nb_pages);
  if (!bitmap) return bitmap;
  const std::span<std::byte> bytes = bytes_of(bitmap->pages_);
  std::ranges::fill(bytes, std::byte{});
  const Header header{.magic = SF_BITMAP_MAGIC,
                      .version = SF_BITMAP_VERSION,
                      .generation = random_generation(),
                      .nb_pages = nb_pages,
                      .reserved = {}};
  std::memcpy(bytes.data(), &header, sizeof header);
  Presence presence = bitmap->presence();
  for (const Gfn page : list_of(where))
    if (presence.claim(page, PageState::kClaimedByMemtap)) presence.mark_present(page);
  return bitmap;
}

Result<GuestBitmap> GuestBitmap::take_over(const Domain& domain, PageRange where,
                                           std::uint64_t nb_pages) {
  auto bitmap = map(domain, where, nb_pages);
  if (bitmap) bitmap->presence().unclaim_all();
  return bitmap;
}

Presence GuestBitmap::presence() const noexcept {
  auto* words = reinterpret_cast<Presence::Word*>(bytes_of(pages_).data() + SF_BITMAP_PRESENCE_AT);
  return {{words, Presence::words_for(nb_pages_)}, nb_pages_};
}

}  // namespace snowfabric::xen
