// SPDX-License-Identifier: BSD-3-Clause
// Small texts of other people: page lists, key files, and what comes as a parameter, of the command
// line or of a telemetry command. What is accepted can be written and read again.
#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "descriptor/page_list.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/parse_number.hpp"
#include "fabric/seal.hpp"
#include "pmd-config/telemetry_params.hpp"
#include "tests/fuzz/fuzz_file.hpp"

namespace {

using namespace snowfabric;
using fuzz::check;

std::span<const std::uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

void check_page_list(std::string_view text) {
  constexpr std::uint64_t kPages = 1U << 20U;
  static fuzz::File file;
  const auto list = read_page_list(file.holding(bytes_of(text)), kPages);
  if (!list) return check(list.error().errnum > 0 && !list.error().what.empty());
  for (const PageRange& range : *list)
    check(range.nb_pages > 0 && range.first.value < kPages &&
          range.nb_pages <= kPages - range.first.value);
  check(read_page_list(file.holding(bytes_of(to_page_list(*list))), kPages) == *list);
}

void check_key(std::string_view text) {
  static fuzz::File file;
  const auto key = GroupKey::read(file.holding(bytes_of(text)));
  const std::string_view line = text.ends_with('\n') ? text.substr(0, text.size() - 1) : text;
  const bool good = line.size() == 2 * GroupKey::kBytes && std::ranges::all_of(line, [](char c) {
                      return std::isxdigit(static_cast<unsigned char>(c)) != 0;
                    });
  check(key.has_value() == good);
}

void check_words(std::string_view text) {
  for (const int base : {10, 16})
    if (const auto number = parse_number(text, base); number)
      check(parse_number(text, base == 16 ? 16 : 0) == number);
  if (const auto mac = parse_mac(text); mac) check(parse_mac(to_string(*mac)) == mac);
}

void check_telemetry_params(std::string_view text) {
  if (const auto guest = guest_id_of(text); guest)
    check(guest_id_of(std::to_string(*guest)) == guest && parse_number(text, 10) == *guest);
  if (const auto image = image_id_of(text); image) check(fmt::format("{:016x}", *image) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text{reinterpret_cast<const char*>(data), size};
  check_page_list(text);
  check_key(text);
  check_words(text);
  check_telemetry_params(text);
  return 0;
}
