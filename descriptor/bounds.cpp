// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/bounds.hpp"

#include <algorithm>
#include <cerrno>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include <fmt/format.h>

namespace snowfabric {
namespace {

/// "field[index]", for the text of an error.
std::string at(std::string_view field, std::size_t index) {
  return fmt::format("{}[{}]", field, index);
}

std::unexpected<Error> bad(int errnum, std::string_view field, std::string_view why) {
  return fail(errnum, fmt::format("descriptor: {}: {}", field, why));
}

Result<void> check_count(int errnum, std::string_view field, std::size_t nb, std::size_t most) {
  if (nb > most) return bad(errnum, field, fmt::format("{} entries, at most {}", nb, most));
  return {};
}

Result<void> check_counts(const Descriptor& d, int errnum) {
  for (const auto& [field, nb, most] : {std::tuple{"spaces", d.spaces.size(), kMaxSpaces},
                                        {"blocks", d.blocks.size(), kMaxRamBlocks},
                                        {"sections", d.sections.size(), kMaxSections},
                                        {"machine_args", d.machine_args.size(), kMaxMachineArgs},
                                        {"zero_pages", d.zero_pages.size(), kMaxPageRanges},
                                        {"absent_pages", d.absent_pages.size(), kMaxPageRanges},
                                        {"working_set", d.working_set.size(), kMaxPageRanges}})
    if (auto ok = check_count(errnum, field, nb, most); !ok) return ok;
  return {};
}

/// Names reach terminals and command lines: no control characters. Other bytes are the VMM's.
Result<void> check_name(int errnum, std::string_view field, std::string_view name) {
  if (name.size() > kMaxNameBytes)
    return bad(errnum, field, fmt::format("{} bytes, at most {}", name.size(), kMaxNameBytes));
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (const auto it = std::ranges::find_if(name, control); it != name.end())
    return bad(errnum, field, fmt::format("control character at byte {}", it - name.begin()));
  return {};
}

Result<void> check_identity(const Descriptor& d, int errnum) {
  if (d.image_id == 0) return bad(errnum, "image_id", "is 0");
  if (!d.group.is_multicast())
    return bad(errnum, "group", to_string(d.group) + " is not a multicast address");
  for (const auto& [field, nb, right] :
       {std::tuple{"group_key", d.group_key.size(), kGroupKeyBytes},
        {"hash_root", d.hash_root.size(), kHashRootBytes}})
    if (nb != 0 && nb != right)
      return bad(errnum, field, fmt::format("{} bytes, not {}", nb, right));
  if (d.server.is_multicast())
    return bad(errnum, "server", to_string(d.server) + " is not unicast");
  return check_name(errnum, "parent_name", d.parent_name);
}

Result<void> check_spaces(const Descriptor& d, int errnum) {
  if (d.spaces.empty() || d.spaces.front().space != 0)
    return bad(errnum, "spaces", "the first is not space 0, guest memory");
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < d.spaces.size(); ++i) {
    const PageSpace& space = d.spaces[i];
    if (i > 0 && space.space <= d.spaces[i - 1].space)
      return bad(errnum, at("spaces", i), fmt::format("space {} is not ascending", space.space));
    if (space.nb_pages == 0) return bad(errnum, at("spaces", i), "nb_pages is 0");
    if (space.nb_pages > kMaxImagePages - total)
      return bad(errnum, at("spaces", i),
                 fmt::format("nb_pages {}: more than {} in all", space.nb_pages, kMaxImagePages));
    total += space.nb_pages;
  }
  return {};
}

/// @param end  of the block before
Result<void> check_block(const RamBlock& block, const std::string& field, std::uint64_t end,
                         std::uint64_t image_pages, int errnum) {
  if (block.name.empty()) return bad(errnum, field, "name is empty");
  if (auto ok = check_name(errnum, field + ": name", block.name); !ok) return ok;
  if (block.nb_pages == 0) return bad(errnum, field, "nb_pages is 0");
  if (block.first_page < end)
    return bad(errnum, field,
               fmt::format("first_page {}: not behind the block before, which ends at {}",
                           block.first_page, end));
  if (block.first_page > image_pages || block.nb_pages > image_pages - block.first_page)
    return bad(errnum, field,
               fmt::format("pages [{}, +{}) are beyond the image of {}", block.first_page,
                           block.nb_pages, image_pages));
  if (block.used_bytes == 0 || block.used_bytes > block.nb_pages * kPageSize)
    return bad(
        errnum, field,
        fmt::format("used_bytes {}: not in 1 .. {}", block.used_bytes, block.nb_pages * kPageSize));
  return {};
}

Result<void> check_blocks(const Descriptor& d, int errnum) {
  std::uint64_t end = 0;
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < d.blocks.size(); ++i) {
    const RamBlock& block = d.blocks[i];
    if (auto ok = check_block(block, at("blocks", i), end, d.spaces.front().nb_pages, errnum); !ok)
      return ok;
    if (!names.insert(block.name).second)
      return bad(errnum, at("blocks", i),
                 fmt::format("name {}: a block before has it", block.name));
    end = block.first_page + block.nb_pages;
  }
  return {};
}

bool known(SectionType type) {
  switch (type) {
    case SectionType::kQemuConfig:
    case SectionType::kQemuRamHeader:
    case SectionType::kQemuDevices:
    case SectionType::kXenContext:
    case SectionType::kXenDomain: return true;
  }
  return false;
}

Result<void> check_sections(const Descriptor& d, int errnum) {
  std::set<SectionType> types;
  for (std::size_t i = 0; i < d.sections.size(); ++i) {
    const Section& section = d.sections[i];
    const std::uint32_t type = std::to_underlying(section.type);
    if (type == 0) return bad(errnum, at("sections", i), "type is 0");
    if (!known(section.type) && (type & kOptionalSection) == 0)
      return fail(ENOTSUP, fmt::format("descriptor: sections[{}]: type {} is unknown and not "
                                       "optional; is a newer snowfabric needed?",
                                       i, type));
    if (!types.insert(section.type).second)
      return bad(errnum, at("sections", i), fmt::format("a second section of type {:#x}", type));
    if (section.bytes.size() > kMaxDescriptorBodyBytes)
      return fail(EFBIG, fmt::format("descriptor: sections[{}]: {} bytes, at most {}", i,
                                     section.bytes.size(), kMaxDescriptorBodyBytes));
  }
  return {};
}

Result<void> check_machine_args(const Descriptor& d, int errnum) {
  for (std::size_t i = 0; i < d.machine_args.size(); ++i) {
    const std::string& arg = d.machine_args[i];
    if (arg.size() >= kMaxMachineArgBytes)
      return bad(errnum, at("machine_args", i),
                 fmt::format("{} bytes, fewer than {} allowed", arg.size(), kMaxMachineArgBytes));
    if (arg.contains('\0')) return bad(errnum, at("machine_args", i), "has a NUL byte");
  }
  return {};
}

/// Ascending, disjoint, inside the image.
Result<void> check_ranges(int errnum, std::string_view field, std::span<const PageRange> ranges,
                          std::uint64_t image_pages) {
  std::uint64_t end = 0;
  for (const auto& [first, nb_pages] : ranges) {
    if (nb_pages == 0)
      return bad(errnum, field, fmt::format("empty range at page {}", first.value));
    if (first.value < end)
      return bad(errnum, field,
                 fmt::format("the range at page {} begins before page {}, where another "
                             "ends",
                             first.value, end));
    if (first.value > image_pages || nb_pages > image_pages - first.value)
      return bad(errnum, field,
                 fmt::format("pages [{}, +{}) are beyond the image of {}", first.value, nb_pages,
                             image_pages));
    end = first.value + nb_pages;
  }
  return {};
}

Result<void> check_page_lists(const Descriptor& d, int errnum) {
  const std::uint64_t nb_pages = d.spaces.front().nb_pages;
  if (auto ok = check_ranges(errnum, "zero_pages", d.zero_pages, nb_pages); !ok) return ok;
  if (auto ok = check_ranges(errnum, "absent_pages", d.absent_pages, nb_pages); !ok) return ok;
  auto sorted = d.working_set;  // its order is its own
  std::ranges::sort(sorted, {}, &PageRange::first);
  return check_ranges(errnum, "working_set", sorted, nb_pages);
}

}  // namespace

Result<void> check_bounds(const Descriptor& descriptor, int errnum) {
  for (const auto check : {check_counts, check_identity, check_spaces, check_blocks, check_sections,
                           check_machine_args, check_page_lists})
    if (auto ok = check(descriptor, errnum); !ok) return ok;
  return {};
}

}  // namespace snowfabric
