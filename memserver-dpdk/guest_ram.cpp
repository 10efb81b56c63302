// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/guest_ram.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <regex>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kMaxLineBytes = 1024;  // QEMU's have some 100

using Match = std::match_results<std::string_view::const_iterator>;

std::uint64_t hexadecimal(const Match::value_type& digits) {
  std::uint64_t value = 0;
  std::from_chars(&*digits.first, &*digits.first + digits.length(), value, 16);
  return value;
}

std::optional<RamSpan> parse_line(std::string_view line) {
  static const std::regex kRam{
      R"( *([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\): (\S+)(?: @([0-9a-f]{16}))?(?: .*)?\r?)"};
  Match found;
  // libstdc++ matches by recursion: the stack would not last for the longest line of an answer.
  if (line.size() > kMaxLineBytes) return std::nullopt;
  if (!std::regex_match(line.begin(), line.end(), found, kRam)) return std::nullopt;
  const std::uint64_t first = hexadecimal(found[1]), last = hexadecimal(found[2]);
  const std::uint64_t nb_bytes = last - first + 1;
  const std::uint64_t offset = found[4].matched ? hexadecimal(found[4]) : 0;
  if (first % kPageSize != 0 || offset % kPageSize != 0 || last < first || nb_bytes < kPageSize)
    return std::nullopt;
  return RamSpan{{first / kPageSize, nb_bytes / kPageSize}, found[3].str(), offset / kPageSize};
}

}  // namespace

std::vector<RamSpan> parse_flat_view(std::string_view text) {
  std::vector<RamSpan> spans;
  bool in_memory = false;  // a view begins with the names of its address spaces
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with("FlatView")) in_memory = false;
    if (line.starts_with(" AS \"memory\",")) in_memory = true;
    if (!in_memory) continue;
    if (auto span = parse_line(line)) spans.push_back(std::move(*span));
  }
  return spans;
}

Result<std::vector<RamSpan>> ask_ram_spans(Qmp& qmp) {
  const auto text = qmp.execute("human-monitor-command", {{"command-line", "info mtree -f"}});
  if (!text) return std::unexpected(text.error());
  auto spans = text->is_string() ? parse_flat_view(text->get_ref<const std::string&>())
                                 : std::vector<RamSpan>{};
  if (spans.empty()) return fail(EPROTO, "QEMU does not say where the guest's RAM lies");
  return spans;
}

}  // namespace snowfabric
