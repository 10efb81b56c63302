// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/page_list.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "fabric/base/parse_number.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kMaxLineBytes = 4096;  // what is no list of pages may have no lines at all

std::optional<PageRange> parse_range(std::string_view text) {
  const auto dash = text.find('-');
  const auto first = parse_number(text.substr(0, dash), 0);
  const auto last = dash == std::string_view::npos ? first : parse_number(text.substr(dash + 1), 0);
  if (!first || !last || *last < *first || *last >= kMaxImagePages) return std::nullopt;
  return PageRange{Gfn{*first}, static_cast<std::uint32_t>(*last - *first + 1)};
}

/// What is neither comment nor blank.
std::string words_of(std::string_view line) {
  std::string words{line.substr(0, line.find('#'))};
  std::erase_if(words, [](char c) { return c == ' ' || c == '\t' || c == '\r'; });
  return words;
}

}  // namespace

std::string to_page_list(std::span<const PageRange> ranges) {
  std::string text;
  for (const PageRange& range : ranges)
    text += fmt::format("{}-{}\n", range.first.value, range.first.value + range.nb_pages - 1);
  return text;
}

Result<std::vector<PageRange>> read_page_list(const std::string& path, std::uint64_t nb_pages) {
  std::ifstream file{path};
  if (!file) return fail(errno, fmt::format("open {}", path));
  std::vector<PageRange> ranges;
  std::array<char, kMaxLineBytes> line{};
  unsigned number = 1;
  for (errno = 0; file.getline(line.data(), line.size()); ++number) {
    const auto nb_bytes = static_cast<std::size_t>(file.gcount()) - (file.eof() ? 0 : 1);
    const std::string words = words_of({line.data(), nb_bytes});
    if (words.empty()) continue;
    const auto range = parse_range(words);
    if (!range)
      return fail(EINVAL, fmt::format("{}:{}: neither a page number nor a range", path, number));
    if (range->first.value + range->nb_pages > nb_pages)
      return fail(EINVAL, fmt::format("{}:{}: page {} is beyond the image of {}", path, number,
                                      range->first.value + range->nb_pages - 1, nb_pages));
    if (ranges.size() == kMaxPageRanges)
      return fail(EFBIG, fmt::format("{}:{}: more than {} ranges", path, number, kMaxPageRanges));
    ranges.push_back(*range);
  }
  if (file.bad()) return fail(errno != 0 ? errno : EIO, fmt::format("read {}", path));
  if (!file.eof()) return fail(EINVAL, fmt::format("{}:{}: not a list of pages", path, number));
  return ranges;
}

}  // namespace snowfabric
