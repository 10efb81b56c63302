// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/free_pages.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <limits>
#include <optional>
#include <random>
#include <string_view>

#include <fmt/format.h>

namespace snowfabric {
namespace {

constexpr std::uint64_t kMaxFrames = std::uint64_t{1} << 40U;  // x86 has 52 bits of address

std::string make_token() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

/// Takes a decimal number off the front of `text`.
std::optional<std::uint64_t> take_number(std::string_view& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

/// A range behind frame `least`. @return nothing: the line is none
std::optional<FrameRange> parse_range(std::string_view line, std::uint64_t least) {
  const auto first = take_number(line);
  if (!first || !line.starts_with(' ')) return std::nullopt;
  line.remove_prefix(1);
  const auto nb_frames = take_number(line);
  if (!nb_frames || !line.empty()) return std::nullopt;
  if (*first < least || *first >= kMaxFrames) return std::nullopt;
  if (*nb_frames == 0 || *nb_frames > kMaxFrames - *first) return std::nullopt;
  return FrameRange{*first, *nb_frames};
}

/// Passes over what belongs to an earlier question: that guest spoke of another moment.
/// @return how many ranges follow
Result<std::uint64_t> take_header(LineSocket& lines, std::string_view token) {
  const std::string ranges = fmt::format("RANGES {} ", token);
  const std::string refused = fmt::format("REFUSED {} ", token);
  for (;;) {
    const auto line = lines.next();
    if (!line) return std::unexpected(line.error());
    if (line->starts_with(refused))
      return fail(ENOTSUP, fmt::format("the guest does not say what is free: {}",
                                       printable(line->substr(refused.size()))));
    if (!line->starts_with(ranges)) continue;
    std::string_view rest = line->substr(ranges.size());
    const auto nb_ranges = take_number(rest);
    if (nb_ranges && rest.empty()) return *nb_ranges;
    return fail(EPROTO, fmt::format("the guest says \"{}\"", printable(*line)));
  }
}

Result<std::vector<FrameRange>> take_ranges(LineSocket& lines, std::uint64_t nb_ranges) {
  std::vector<FrameRange> ranges;
  for (std::uint64_t i = 0; i < nb_ranges; ++i) {
    const auto line = lines.next();
    if (!line) return std::unexpected(line.error());
    const auto range =
        parse_range(*line, ranges.empty() ? 0 : ranges.back().first + ranges.back().nb_frames);
    if (!range)
      return fail(EPROTO, fmt::format("\"{}\" is not the guest's free range {} of {}",
                                      printable(*line), i, nb_ranges));
    ranges.push_back(*range);
  }
  const auto end = lines.next();
  if (!end) return std::unexpected(end.error());
  if (*end != "END")
    return fail(EPROTO, fmt::format("the guest says \"{}\", not END", printable(*end)));
  return ranges;
}

void add(std::vector<PageRange>& ranges, std::uint64_t page) {
  const bool extends = !ranges.empty() &&
                       ranges.back().first.value + ranges.back().nb_pages == page &&
                       ranges.back().nb_pages < std::numeric_limits<std::uint32_t>::max();
  if (extends)
    ++ranges.back().nb_pages;
  else
    ranges.push_back({Gfn{page}, 1});
}

/// @return the image's page of a span's first frame; nothing: it lies elsewhere
std::optional<std::uint64_t> first_page_of(const RamSpan& span, std::span<const RamBlock> blocks,
                                           std::uint64_t nb_pages) {
  const auto block = std::ranges::find(blocks, span.block, &RamBlock::name);
  if (block == blocks.end() || block->first_page > nb_pages) return std::nullopt;
  const std::uint64_t room = std::min(block->nb_pages, nb_pages - block->first_page);
  if (span.frames.nb_frames > room || span.first_page > room - span.frames.nb_frames)
    return std::nullopt;
  return block->first_page + span.first_page;
}

/// @param first_page  of the image, where `span` begins
void mark_common(const FrameRange& range, const FrameRange& span, std::uint64_t first_page,
                 std::vector<bool>& pages) {
  const std::uint64_t begin = std::max(range.first, span.first);
  const std::uint64_t end = std::min(range.first + range.nb_frames, span.first + span.nb_frames);
  for (std::uint64_t frame = begin; frame < end; ++frame)
    pages[first_page + frame - span.first] = true;
}

}  // namespace

Patience patience_with(std::uint64_t nb_pages) noexcept {
  constexpr std::uint64_t kPagesPerMs = 262'144 / 1000;  // a GiB a second
  const std::chrono::milliseconds more{nb_pages / kPagesPerMs};
  const Patience least;
  return {.silence = least.silence + more, .whole = least.whole + more};
}

Result<std::vector<FrameRange>> ask_free_frames(const std::string& socket_path,
                                                std::uint64_t nb_pages, const Patience& patience) {
  auto lines = LineSocket::connect(socket_path, "the guest's sf-agent", patience);
  if (!lines) return std::unexpected(lines.error());
  const std::string token = make_token();
  if (auto ok = lines->say(fmt::format("FREE {}\n", token)); !ok)
    return std::unexpected(ok.error());
  const auto nb_ranges = take_header(*lines, token);
  if (!nb_ranges) return std::unexpected(nb_ranges.error());
  if (*nb_ranges > nb_pages)
    return fail(EPROTO, fmt::format("the guest says that {} ranges of its {} pages are free",
                                    *nb_ranges, nb_pages));
  return take_ranges(*lines, *nb_ranges);
}

Result<AvoidedPages> avoidable(std::span<const FrameRange> frames, std::span<const RamSpan> spans,
                               std::span<const RamBlock> blocks, std::uint64_t nb_pages,
                               const std::function<bool(Gfn)>& written) {
  std::vector<bool> free(nb_pages);  // two spans may show one page
  bool any_span = false;
  for (const RamSpan& span : spans) {
    const auto first = first_page_of(span, blocks, nb_pages);
    if (!first) continue;
    any_span = true;
    for (const FrameRange& range : frames) mark_common(range, span.frames, *first, free);
  }
  if (!any_span)
    return fail(ENOTSUP, "the guest's RAM is no part of the image whose writes are known");
  AvoidedPages out;
  for (std::uint64_t page = 0; page < nb_pages; ++page) {
    if (!free[page]) continue;
    ++out.nb_free;
    if (written(Gfn{page})) continue;
    add(out.ranges, page);
    ++out.nb_pages;
  }
  return out;
}

}  // namespace snowfabric
