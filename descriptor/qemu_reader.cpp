// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "descriptor/qemu_format.hpp"
#include "descriptor/qemu_input.hpp"
#include "descriptor/qemu_output.hpp"
#include "descriptor/qemu_stream.hpp"

namespace snowfabric::qemu {
namespace {

constexpr std::uint32_t kRamVersion = 4;  // the only one that QEMU 2.x and later know

std::uint32_t number_at(std::span<const std::byte> bytes, std::size_t at) {
  Be32 value{0};
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value.host();
}

bool is_name(std::string_view name) {
  return !name.empty() && std::ranges::none_of(name, [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
}

/// Behind the device sections come the EOF byte and, unless suppressed, JSON that describes them:
/// 00 06, length, text. Only the end says where: the sections do not tell their lengths.
/// @return the EOF byte's place; 0: there is none
std::size_t find_eof(std::span<const std::byte> tail) {
  constexpr std::size_t kDescriptionHeader = 6;
  if (tail.size() < kDescriptionHeader) return 0;
  if (tail.back() == std::byte{kEof}) return tail.size() - 1;
  if (tail.back() != std::byte{'}'}) return 0;
  for (std::size_t at = tail.size() - kDescriptionHeader; at > 0; --at)
    if (tail[at] == std::byte{kEof} && tail[at + 1] == std::byte{kVmDescription} &&
        number_at(tail, at + 2) == tail.size() - at - kDescriptionHeader)
      return at;
  return 0;
}

/// Whether the bytes end as sections do: with the footer of a section that is among them.
bool ends_with_section(std::span<const std::byte> devices) {
  constexpr std::size_t kFooterBytes = 5;
  if (devices.size() <= 2 * kFooterBytes) return false;
  const auto footer = devices.last(kFooterBytes);
  if (footer[0] != std::byte{kFooter}) return false;
  std::array<std::byte, kFooterBytes> begin{std::byte{kSectionFull}};
  std::ranges::copy(footer.subspan(1), begin.begin() + 1);
  return !std::ranges::search(devices, begin).empty();
}

class Reader {
 public:
  Reader(const ByteSource& source, const PlaceBlocks& place, std::uint64_t max_pages)
      : in_{source}, place_{place}, max_pages_{std::min(max_pages, kMaxImagePages)} {}

  Result<State> stream() {
    if (read_header() && read_config() && read_sections() && check_complete() && read_devices())
      return std::move(state_);
    return std::unexpected(in_.error());
  }

  Result<State> config_and_ram_header() {
    if (read_config() && type_ != kSectionStart) in_.refuse(EBADMSG, "no start of a section");
    if (in_.ok() && read_section_name() && read_blocks() && read_no_page())
      return std::move(state_);
    return std::unexpected(in_.error());
  }

 private:
  bool read_header();
  bool read_config();
  bool read_subsection();
  bool read_capabilities();
  bool read_sections();
  bool read_section_name();
  bool read_blocks();
  bool read_block(std::vector<StreamBlock>& blocks, std::uint64_t& left_bytes);
  bool place_blocks();
  bool read_part();
  bool read_pages();
  bool read_page(std::uint64_t address, std::uint64_t flags);
  bool select_block();
  bool read_no_page();
  bool read_footer();
  bool check_complete();
  bool read_devices();

  Input in_;
  const PlaceBlocks& place_;
  std::uint64_t max_pages_;
  State state_;
  std::uint8_t type_ = 0;  // of the section at hand
  bool ignores_shared_ = false;
  std::vector<std::span<std::byte>> places_;  // as state_.blocks
  std::vector<std::uint64_t> nb_came_;        // as state_.blocks: different pages
  std::vector<std::uint64_t> came_;           // one bit a page of the image
  std::size_t block_ = 0;                     // the last one named
  bool named_ = false;
};

bool Reader::read_header() {
  if (in_.number<std::uint32_t>() != kMagic)
    return in_.refuse(EBADMSG, "not a migration stream of QEMU: the magic is another");
  const auto version = in_.number<std::uint32_t>();
  if (in_.ok() && version != kVersion)
    return in_.refuse(ENOTSUP, fmt::format("version {}, only {} is known", version, kVersion));
  return in_.ok();
}

bool Reader::read_config() {
  type_ = in_.number<std::uint8_t>();
  if (in_.ok() && type_ != kConfiguration)
    return in_.refuse(ENOTSUP, "no configuration section: use a newer machine type");
  const auto nb_bytes = in_.number<std::uint32_t>();
  if (nb_bytes > kMaxNameBytes)
    return in_.refuse(EBADMSG, fmt::format("machine name of {} bytes", nb_bytes));
  put(state_.config, type_);
  put(state_.config, nb_bytes);
  state_.config.resize(state_.config.size() + nb_bytes);
  if (!in_.bytes(std::span{state_.config}.last(nb_bytes))) return false;
  while ((type_ = in_.number<std::uint8_t>()) == kSubsection)
    if (!read_subsection()) return false;
  return in_.ok();
}

/// What capability validation sent stays behind: a clone has not the parent's capabilities.
bool Reader::read_subsection() {
  const std::string name = in_.name();
  const auto version = in_.number<std::uint32_t>();
  if (!in_.ok()) return false;
  if (name == "configuration/capabilities") return read_capabilities();
  const std::size_t nb_bytes = name == "configuration/target-page-bits" ? 4
                               : name == "configuration/uuid"           ? 16
                                                                        : 0;
  if (nb_bytes == 0)
    return in_.refuse(ENOTSUP, fmt::format("unknown configuration subsection \"{}\"", name));
  auto& config = state_.config;
  if (config.size() + name.size() + nb_bytes + 6 > kMaxConfigBytes)
    return in_.refuse(EFBIG, fmt::format("configuration of more than {} bytes", kMaxConfigBytes));
  put(config, type_);
  put_name(config, name);
  put(config, version);
  config.resize(config.size() + nb_bytes);
  return in_.bytes(std::span{config}.last(nb_bytes));
}

bool Reader::read_capabilities() {
  const auto nb_capabilities = in_.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < nb_capabilities && in_.ok(); ++i) {
    const std::string name = in_.name();
    if (!in_.ok()) return false;
    if (name != "x-ignore-shared")
      return in_.refuse(ENOTSUP, fmt::format("switch off migration capability {}", name));
    ignores_shared_ = true;
  }
  return in_.ok();
}

bool Reader::read_sections() {
  for (;;) {
    switch (type_) {
      case kSectionStart:
        if (!(read_section_name() && read_blocks() && place_blocks() && read_pages())) return false;
        break;
      case kSectionPart:
      case kSectionEnd:
        if (!read_part()) return false;
        break;
      case kSectionFull: return in_.ok();
      case kCommand:
        return in_.refuse(ENOTSUP,
                          "commands: switch off migration capabilities postcopy-ram, return-path");
      default: return in_.refuse(EBADMSG, fmt::format("section of unknown type {}", type_));
    }
    type_ = in_.number<std::uint8_t>();
    if (!in_.ok()) return false;
  }
}

bool Reader::read_section_name() {
  if (!state_.blocks.empty()) return in_.refuse(EBADMSG, "a second section starts");
  state_.ram_section_id = in_.number<std::uint32_t>();
  const std::string name = in_.name();
  const auto instance = in_.number<std::uint32_t>();
  state_.ram_version = in_.number<std::uint32_t>();
  if (!in_.ok()) return false;
  if (name != kRamName)
    return in_.refuse(ENOTSUP, fmt::format("section \"{}\": switch off the migration capability "
                                           "that sends it, only \"ram\" is known",
                                           name));
  if (instance != 0 || state_.ram_version != kRamVersion)
    return in_.refuse(ENOTSUP, fmt::format("ram section {} of version {}, only 0 of {} is known",
                                           instance, state_.ram_version, kRamVersion));
  return true;
}

bool Reader::read_blocks() {
  const auto head = in_.number<std::uint64_t>();
  if (!in_.ok()) return false;
  std::uint64_t left_bytes = head & ~kRamFlags;
  if ((head & kRamFlags) != kRamMemSize || left_bytes == 0)
    return in_.refuse(EBADMSG, "the ram section does not begin with its blocks");
  if (left_bytes / kPageSize > max_pages_)
    return in_.refuse(
        EFBIG, fmt::format("{} pages of memory, at most {}", left_bytes / kPageSize, max_pages_));
  std::vector<StreamBlock> blocks;
  while (left_bytes != 0)
    if (!read_block(blocks, left_bytes)) return false;
  state_.blocks = lay_out(blocks);
  return true;
}

bool Reader::read_block(std::vector<StreamBlock>& blocks, std::uint64_t& left_bytes) {
  if (blocks.size() == kMaxBlocks)
    return in_.refuse(EFBIG, fmt::format("more than {} RAM blocks", kMaxBlocks));
  StreamBlock block{in_.name(), in_.number<std::uint64_t>()};
  if (ignores_shared_) in_.number<std::uint64_t>();  // its address in the guest
  if (!in_.ok()) return false;
  if (!is_name(block.name)) return in_.refuse(EBADMSG, "the name of a RAM block is not text");
  if (std::ranges::find(blocks, block.name, &StreamBlock::name) != blocks.end())
    return in_.refuse(EBADMSG, fmt::format("RAM block {} comes twice", block.name));
  const std::uint64_t used = block.used_bytes;
  if (used == 0 || used % kPageSize != 0 || used > left_bytes)
    return in_.refuse(EBADMSG, fmt::format("RAM block {} of {} bytes: not a number of pages, or "
                                           "more than all blocks together",
                                           block.name, used));
  left_bytes -= used;
  blocks.push_back(std::move(block));
  return true;
}

bool Reader::place_blocks() {
  const auto& blocks = state_.blocks;
  auto places = place_(blocks);
  if (!places) return in_.refuse(places.error());
  places_ = std::move(*places);
  if (places_.size() != blocks.size())
    return in_.refuse(EINVAL,
                      fmt::format("{} places for {} RAM blocks", places_.size(), blocks.size()));
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (!places_[i].empty() && places_[i].size() != blocks[i].used_bytes)
      return in_.refuse(EINVAL,
                        fmt::format("a place of {} bytes for RAM block {} of {}", places_[i].size(),
                                    blocks[i].name, blocks[i].used_bytes));
  nb_came_.resize(blocks.size());
  came_.resize((nb_pages(blocks) + 63) / 64);
  return true;
}

bool Reader::read_part() {
  const auto id = in_.number<std::uint32_t>();
  if (!in_.ok()) return false;
  if (state_.blocks.empty() || id != state_.ram_section_id)
    return in_.refuse(EBADMSG, fmt::format("section {} goes on but did not start", id));
  return read_pages();
}

bool Reader::read_pages() {
  for (;;) {
    const auto head = in_.number<std::uint64_t>();
    if (!in_.ok()) return false;
    if (head == kRamEos) return read_footer();
    if (!read_page(head & ~kRamFlags, head & kRamFlags)) return false;
  }
}

bool Reader::read_page(std::uint64_t address, std::uint64_t flags) {
  const std::uint64_t kind = flags & ~std::uint64_t{kRamContinue};
  if (kind == kRamXbzrle || kind == kRamCompressed || kind == kRamHook)
    return in_.refuse(ENOTSUP, "switch off migration capabilities xbzrle, compress, rdma");
  if (kind != kRamPage && kind != kRamZero)
    return in_.refuse(EBADMSG, fmt::format("page with flags {:#x}", flags));
  if ((flags & kRamContinue) == 0 && !select_block()) return false;
  if (!named_) return in_.refuse(EBADMSG, "the first page names no block");
  const RamBlock& block = state_.blocks[block_];
  if (address >= block.used_bytes)
    return in_.refuse(EBADMSG, fmt::format("page at {:#x} of RAM block {}, which has {:#x} bytes",
                                           address, block.name, block.used_bytes));
  if (places_[block_].empty())
    return in_.refuse(
        EBADMSG, fmt::format("page of RAM block {}, whose pages are not expected", block.name));
  const auto memory = places_[block_].subspan(address, kPageSize);
  const std::uint64_t page = block.first_page + address / kPageSize;
  const std::uint64_t bit = std::uint64_t{1} << (page % 64);
  const bool again = (came_[page / 64] & bit) != 0;
  came_[page / 64] |= bit;
  nb_came_[block_] += again ? 0 : 1;
  if (kind == kRamPage) return in_.bytes(memory);
  const auto fill = in_.number<std::uint8_t>();
  // Zeros are not written over zeros: that would allocate the page.
  if (fill != 0 || again) std::memset(memory.data(), fill, memory.size());
  return in_.ok();
}

bool Reader::select_block() {
  const std::string name = in_.name();
  if (!in_.ok()) return false;
  const auto found = std::ranges::find(state_.blocks, name, &RamBlock::name);
  if (found == state_.blocks.end())
    return in_.refuse(EBADMSG, "page of a RAM block that was not listed");
  block_ = static_cast<std::size_t>(found - state_.blocks.begin());
  named_ = true;
  return true;
}

bool Reader::read_no_page() {
  if (in_.number<std::uint64_t>() != kRamEos) return in_.refuse(EBADMSG, "more than blocks");
  return read_footer();
}

bool Reader::read_footer() {
  const auto mark = in_.number<std::uint8_t>();
  const auto id = in_.number<std::uint32_t>();
  if (in_.ok() && (mark != kFooter || id != state_.ram_section_id))
    return in_.refuse(EBADMSG, "the ram section does not end with its footer");
  return in_.ok();
}

bool Reader::check_complete() {
  if (state_.blocks.empty()) return in_.refuse(EBADMSG, "no ram section before the devices");
  for (std::size_t i = 0; i < state_.blocks.size(); ++i) {
    const RamBlock& block = state_.blocks[i];
    if (!places_[i].empty() && nb_came_[i] != block.nb_pages)
      return in_.refuse(EBADMSG,
                        fmt::format("{} of {} pages of RAM block {} did not come",
                                    block.nb_pages - nb_came_[i], block.nb_pages, block.name));
  }
  return true;
}

bool Reader::read_devices() {
  auto& devices = state_.devices;
  put(devices, type_);
  if (!in_.rest(devices, kMaxDeviceBytes)) return false;
  devices.resize(find_eof(devices));
  if (!ends_with_section(devices))
    return in_.refuse(EBADMSG, "truncated: the device state does not end as it should");
  return true;
}

template <class Function>
Result<State> without_exceptions(Function read) {
  try {
    return read();
  } catch (const std::bad_alloc&) {
    return fail(ENOMEM, "migration stream: out of memory");
  }
}

}  // namespace

Result<State> read_stream(const ByteSource& source, const PlaceBlocks& place,
                          std::uint64_t max_pages) {
  return without_exceptions([&] { return Reader{source, place, max_pages}.stream(); });
}

Result<State> state_of(const Descriptor& descriptor) {
  const auto find = [&descriptor](SectionType type) {
    const auto found = std::ranges::find(descriptor.sections, type, &Section::type);
    return found != descriptor.sections.end() ? &*found : nullptr;
  };
  const Section* config = find(SectionType::kQemuConfig);
  const Section* header = find(SectionType::kQemuRamHeader);
  const Section* devices = find(SectionType::kQemuDevices);
  if (config == nullptr || header == nullptr || devices == nullptr)
    return fail(EINVAL, "the descriptor has no state of a QEMU parent");
  // As they follow one another in a stream, and under the same rules.
  std::vector<std::byte> both{config->bytes};
  both.insert(both.end(), header->bytes.begin(), header->bytes.end());
  std::span<const std::byte> left{both};
  const ByteSource source = [&left](std::span<std::byte> out) -> Result<std::size_t> {
    const std::size_t n = std::min(out.size(), left.size());
    std::ranges::copy(left.first(n), out.begin());
    left = left.subspan(n);
    return n;
  };
  auto state = without_exceptions(
      [&] { return Reader{source, {}, kMaxImagePages}.config_and_ram_header(); });
  if (!state)
    return fail(state.error().errnum,
                "sections qemu-config and qemu-ram-header: " + state.error().what);
  if (state->config != config->bytes)
    return fail(EBADMSG, "section qemu-config is not one configuration and nothing else");
  if (state->blocks != descriptor.blocks)
    return fail(EINVAL, "the descriptor's RAM blocks are not those of its qemu-ram-header section");
  if (!ends_with_section(devices->bytes)) return fail(EBADMSG, "section qemu-devices is truncated");
  state->devices = devices->bytes;
  return state;
}

}  // namespace snowfabric::qemu
