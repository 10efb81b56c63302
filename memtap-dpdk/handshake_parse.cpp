// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cerrno>
#include <limits>
#include <optional>
#include <span>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "fabric/base/frame_number.hpp"
#include "memtap-dpdk/handshake.hpp"

namespace snowfabric {
namespace {

using Json = nlohmann::json;

/// Source: DOMID_FIRST_RESERVED of xen/xen.h.
constexpr std::uint64_t kFirstReservedDomain = 0x7ff0;

std::unexpected<Error> bad(std::size_t index, std::string_view why) {
  return fail(EINVAL, fmt::format("handshake: region {}: {}", index, why));
}

Result<std::uint64_t> number(const Json& region, std::size_t index, const char* name) {
  const auto field = region.find(name);
  if (field == region.end()) return bad(index, fmt::format("{} is missing", name));
  if (!field->is_number_unsigned())
    return bad(index, fmt::format("{} is not an unsigned integer", name));
  return field->get<std::uint64_t>();
}

/// `page_size_kib` carries bytes too: its name is a mistake that Firecracker's API keeps.
Result<void> check_page_size(const Json& region, std::size_t index) {
  for (const char* name : {"page_size", "page_size_kib"}) {
    if (!region.contains(name)) continue;
    const auto bytes = number(region, index, name);
    if (!bytes) return std::unexpected(bytes.error());
    if (*bytes == kPageSize) return {};
    return fail(EOPNOTSUPP, fmt::format("handshake: region {}: {} {}: only {} bytes are supported, "
                                        "start the guest without huge pages",
                                        index, name, *bytes, kPageSize));
  }
  return {};
}

Result<Region> parse_region(const Json& json, std::size_t index, std::uint64_t image_bytes) {
  if (!json.is_object()) return bad(index, "is not an object");
  const auto base = number(json, index, "base_host_virt_addr");
  const auto size = number(json, index, "size");
  const auto offset = number(json, index, "offset");
  for (const auto* field : {&base, &size, &offset}) {
    if (!*field) return std::unexpected(field->error());
    if (**field % kPageSize != 0)
      return bad(index, fmt::format("{:#x} is not a multiple of {}", **field, kPageSize));
  }
  if (auto ok = check_page_size(json, index); !ok) return std::unexpected(ok.error());
  if (*size == 0) return bad(index, "is empty");
  if (*base > std::numeric_limits<std::uint64_t>::max() - *size)
    return bad(index, fmt::format("{:#x} + {:#x} is beyond the address space", *base, *size));
  if (*offset > image_bytes || *size > image_bytes - *offset)
    return bad(index, fmt::format("[{:#x}, +{:#x}) is beyond the image of {:#x} bytes; is the "
                                  "guest a clone of this image?",
                                  *offset, *size, image_bytes));
  return Region{*base, *size, *offset};
}

/// Neither addresses nor image bytes may lie in two regions: a page has one place.
Result<void> check_overlap(std::vector<Region> regions, std::uint64_t Region::* start) {
  std::ranges::sort(regions, {}, start);
  for (std::size_t i = 1; i < regions.size(); ++i)
    if (regions[i].*start - regions[i - 1].*start < regions[i - 1].size)
      return fail(EINVAL,
                  fmt::format("handshake: two regions overlap at {} {:#x}",
                              start == &Region::base ? "address" : "offset", regions[i].*start));
  return {};
}

Handover handover_in(const Json& message) {
  if (!message.is_array() || message.size() != 1 || !message[0].is_object())
    return Handover::kRegions;
  if (message[0].contains("complete")) return Handover::kCompletion;
  const auto adapter = message[0].find("adapter");
  if (adapter == message[0].end() || !adapter->is_string()) return Handover::kRegions;
  if (*adapter == "qemu-postcopy") return Handover::kPostcopy;
  if (*adapter == "xen") return Handover::kXen;
  return *adapter == "qemu-precopy" ? Handover::kPrecopy : Handover::kRegions;
}

Result<bool> recovers(const Json& request) {
  const auto recover = request.find("recover");
  if (recover == request.end()) return false;
  if (!recover->is_boolean())
    return fail(EINVAL, "handshake: recover must be true, for a guest whose memtap died, or false");
  return recover->get<bool>();
}

/// @return none, if there is no such list
Result<std::vector<Gfn>> asked_pages(const Json& object) {
  std::vector<Gfn> pages;
  const auto asked = object.find("asked");
  if (asked == object.end()) return pages;
  const bool is_list = asked->is_array() && asked->size() <= kMaxAskedPages &&
                       std::ranges::all_of(*asked, &Json::is_number_unsigned);
  if (!is_list)
    return fail(EINVAL, fmt::format("handshake: asked must be a list of at most {} page numbers",
                                    kMaxAskedPages));
  for (const Json& page : *asked) pages.push_back({page.get<std::uint64_t>()});
  return pages;
}

}  // namespace

Result<std::vector<Region>> parse_handshake(std::string_view json, std::uint64_t image_bytes) {
  if (json.size() > kMaxHandshakeBytes)
    return fail(E2BIG,
                fmt::format("handshake: {} bytes, at most {}", json.size(), kMaxHandshakeBytes));
  const Json array = Json::parse(json, nullptr, false);
  if (!array.is_array()) return fail(EINVAL, "handshake: not a JSON array of regions");
  if (array.empty()) return fail(EINVAL, "handshake: no region");
  if (array.size() > kMaxRegions)
    return fail(E2BIG, fmt::format("handshake: {} regions, at most {}", array.size(), kMaxRegions));
  std::vector<Region> regions;
  for (const Json& entry : array) {
    const auto region = parse_region(entry, regions.size(), image_bytes);
    if (!region) return std::unexpected(region.error());
    regions.push_back(*region);
  }
  for (const auto start : {&Region::base, &Region::offset})
    if (auto ok = check_overlap(regions, start); !ok) return std::unexpected(ok.error());
  return regions;
}

Handover handover_of(std::string_view json) noexcept {
  return handover_in(Json::parse(json, nullptr, false));
}

std::optional<MappedFile> mapped_file_of(std::string_view json) {
  const Json array = Json::parse(json, nullptr, false);
  if (!array.is_array() || array.empty() || !array[0].is_object()) return std::nullopt;
  const auto inode = array[0].find("file_inode"), image = array[0].find("image");
  if (inode == array[0].end() || !inode->is_number_unsigned()) return std::nullopt;
  const bool is_named = image != array[0].end() && image->is_string();
  return MappedFile{inode->get<std::uint64_t>(), is_named ? image->get<std::string>() : ""};
}

Result<QemuRequest> qemu_request_of(std::string_view json) {
  const Json array = Json::parse(json, nullptr, false);
  const Handover handover = handover_in(array);
  if (handover != Handover::kPostcopy && handover != Handover::kPrecopy)
    return fail(EINVAL, "handshake: not that of a QEMU clone");
  const auto recover = recovers(array[0]);
  if (!recover) return std::unexpected(recover.error());
  if (*recover && handover == Handover::kPrecopy)
    return fail(EINVAL, "handshake: only a QEMU in postcopy can be taken up again");
  const auto image = array[0].find("image");
  if (image == array[0].end() && !*recover) return QemuRequest{};
  if (image == array[0].end() || !image->is_string())
    return fail(EINVAL, "handshake: image must be the name of the clone's image");
  return QemuRequest{image->get<std::string>(), *recover};
}

Result<XenDomainRequest> xen_domain_of(std::string_view json) {
  const Json array = Json::parse(json, nullptr, false);
  if (handover_in(array) != Handover::kXen)
    return fail(EINVAL, "handshake: not that of a Xen domain");
  const auto domain = array[0].find("domain");
  const bool is_domain = domain != array[0].end() && domain->is_number_unsigned() &&
                         domain->get<std::uint64_t>() - 1 < kFirstReservedDomain - 1;
  if (!is_domain)
    return fail(EINVAL, "handshake: domain must be the number of a domain other than dom0");
  const auto recover = recovers(array[0]);
  if (!recover) return std::unexpected(recover.error());
  const auto image = array[0].find("image");
  if (image == array[0].end() || !image->is_string())
    return fail(EINVAL, "handshake: image must be the name of the clone's image");
  auto asked = asked_pages(array[0]);
  if (!asked) return std::unexpected(asked.error());
  return XenDomainRequest{domain->get<std::uint16_t>(), image->get<std::string>(), *recover,
                          std::move(*asked)};
}

Result<pid_t> guest_to_complete(std::string_view json) {
  const Json array = Json::parse(json, nullptr, false);
  if (handover_in(array) == Handover::kCompletion)
    if (const Json& pid = array[0]["complete"]; pid.is_number_unsigned())
      if (const auto value = pid.get<std::uint64_t>();
          value != 0 && value <= std::numeric_limits<pid_t>::max())
        return static_cast<pid_t>(value);
  return fail(EINVAL, "handshake: complete must be the process id of a guest");
}

ArrayScanner::Verdict ArrayScanner::feed(std::string_view piece) noexcept {
  for (const char c : piece)
    if (!step(c)) return Verdict::kGarbage;
  return complete_ ? Verdict::kComplete : Verdict::kMore;
}

/// @return false on a byte that cannot be part of a message
bool ArrayScanner::step(char c) noexcept {
  constexpr unsigned kMaxDepth = 16;  // unknown fields may nest, but not without end
  if (in_string_) {
    if (escaped_)
      escaped_ = false;
    else if (c == '\\')
      escaped_ = true;
    else if (c == '"')
      in_string_ = false;
    return true;
  }
  if (c == ' ' || c == '\n' || c == '\r' || c == '\t') return true;
  if (complete_ || (depth_ == 0 && c != '[')) return false;
  if (c == '"') in_string_ = true;
  if (c == '[' || c == '{') ++depth_;
  if (c == ']' || c == '}') --depth_;
  complete_ = depth_ == 0;
  return depth_ <= kMaxDepth;
}

}  // namespace snowfabric
