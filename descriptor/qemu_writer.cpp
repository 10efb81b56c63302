// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include <fmt/format.h>

#include "descriptor/qemu_format.hpp"
#include "descriptor/qemu_output.hpp"
#include "descriptor/qemu_stream.hpp"

namespace snowfabric::qemu {
namespace {

using Bytes = std::vector<std::byte>;

void put_command(Bytes& out, CommandNumber command, std::span<const std::byte> data = {}) {
  put<std::uint8_t>(out, kCommand);
  put<std::uint16_t>(out, command);
  put(out, static_cast<std::uint16_t>(data.size()));
  put_bytes(out, data);
}

void put_ping(Bytes& out, std::uint32_t value) {
  Bytes data;
  put(data, value);
  put_command(out, kPing, data);
}

void begin_section(Bytes& out, SectionByte type, const State& state) {
  put<std::uint8_t>(out, type);
  put(out, state.ram_section_id);
}

void end_ram_section(Bytes& out, const State& state) {
  put<std::uint64_t>(out, kRamEos);
  put<std::uint8_t>(out, kFooter);
  put(out, state.ram_section_id);
}

void put_stream_header(Bytes& out, const State& state) {
  put(out, kMagic);
  put(out, kVersion);
  put_bytes(out, state.config);
}

/// QEMU makes all its memory absent when it is advised; but only the first discard puts it into the
/// state in which pages are placed atomically, and its memory out of reach of huge pages, which
/// would fill the neighbours of a page with zeros. So one there must be, before any page.
void put_discard(Bytes& out, const RamBlock& block) {
  Bytes data;
  put<std::uint8_t>(data, 0);  // version
  put_name(data, block.name);
  put<std::uint8_t>(data, 0);
  put<std::uint64_t>(data, 0);  // from the block's start,
  put<std::uint64_t>(data, kPageSize);
  put_command(out, kRamDiscard, data);
}

/// What starts the clone: QEMU reads it whole before it loads the devices, so that it can take
/// pages in meanwhile.
Result<void> put_package(Bytes& out, const State& state) {
  Bytes package;
  put_command(package, kPostcopyListen);
  put_bytes(package, state.devices);
  put_ping(package, 3);  // as QEMU numbers its pings: the devices are loaded
  put_command(package, kPostcopyRun);
  if (package.size() > std::numeric_limits<std::uint32_t>::max())
    return fail(EFBIG, fmt::format("device state of {} bytes", state.devices.size()));
  Bytes length;
  put(length, static_cast<std::uint32_t>(package.size()));
  put_command(out, kPackaged, length);
  put_bytes(out, package);
  return {};
}

bool is_page_or_zero(std::span<const std::byte> bytes) noexcept {
  return bytes.empty() || bytes.size() == kPageSize;
}

Result<void> put_vital(Bytes& out, const State& state, std::span<const Gfn> vital,
                       const PageBytes& bytes) {
  if (vital.empty()) return {};
  begin_section(out, kSectionPart, state);
  PageWriter writer{state.blocks};
  for (const Gfn page : vital) {
    const auto content = bytes(page);
    if (!is_page_or_zero(content) || !writer.append(out, page, content))
      return fail(EINVAL, fmt::format("vital page {}: no RAM block has it, or {} bytes are no page",
                                      page.value, content.size()));
  }
  end_ram_section(out, state);
  return {};
}

Result<Bytes> preamble(const State& state, std::span<const Gfn> vital, const PageBytes& bytes) {
  if (state.blocks.empty()) return fail(EINVAL, "a clone without RAM blocks");
  Bytes out;
  put_stream_header(out, state);
  put_command(out, kOpenReturnPath);
  put_ping(out, 1);
  Bytes advice;
  put<std::uint64_t>(advice, kPageSize);  // all page sizes of the RAM blocks, or-ed
  put<std::uint64_t>(advice, kPageSize);  // of the target
  put_command(out, kPostcopyAdvise, advice);
  put_ram_header(out, state);
  put_discard(out, state.blocks.front());
  if (auto ok = put_vital(out, state, vital, bytes); !ok) return std::unexpected(ok.error());
  if (auto ok = put_package(out, state); !ok) return std::unexpected(ok.error());
  begin_section(out, kSectionPart, state);
  return out;
}

Result<Bytes> precopy(const State& state, std::size_t left_out, const PageBytes& bytes) {
  if (left_out >= state.blocks.size())
    return fail(EINVAL, fmt::format("RAM block {} of {}", left_out, state.blocks.size()));
  Bytes out;
  put_stream_header(out, state);
  put_ram_header(out, state);
  begin_section(out, kSectionEnd, state);
  PageWriter writer{state.blocks};
  for (const RamBlock& block : state.blocks) {
    if (&block == &state.blocks[left_out]) continue;
    for (std::uint64_t i = 0; i < block.nb_pages; ++i) {
      const Gfn page{block.first_page + i};
      const auto content = bytes(page);
      if (!is_page_or_zero(content) || !writer.append(out, page, content))
        return fail(EINVAL, fmt::format("page {} of RAM block {}: {} bytes are no page", page.value,
                                        block.name, content.size()));
    }
  }
  end_ram_section(out, state);
  put_bytes(out, state.devices);
  put<std::uint8_t>(out, kEof);
  return out;
}

template <class Function>
Result<Bytes> without_exceptions(Function write) {
  try {
    return write();
  } catch (const std::bad_alloc&) {
    return fail(ENOMEM, "migration stream: out of memory");
  }
}

}  // namespace

void put_ram_header(Bytes& out, const State& state) {
  begin_section(out, kSectionStart, state);
  put_name(out, kRamName);
  put<std::uint32_t>(out, 0);  // instance
  put(out, state.ram_version);
  put<std::uint64_t>(out, nb_pages(state.blocks) * kPageSize | kRamMemSize);
  for (const RamBlock& block : state.blocks) {
    put_name(out, block.name);
    put<std::uint64_t>(out, block.used_bytes);
  }
  end_ram_section(out, state);
}

std::vector<RamBlock> lay_out(std::span<const StreamBlock> blocks) {
  const auto largest = std::ranges::max_element(blocks, {}, &StreamBlock::used_bytes);
  std::vector<RamBlock> laid;
  std::uint64_t first_page = 0;
  const auto add = [&](const StreamBlock& block) {
    const std::uint64_t pages = block.used_bytes / kPageSize;
    laid.push_back({block.name, first_page, pages, block.used_bytes});
    first_page += pages;
  };
  if (largest != blocks.end()) add(*largest);
  for (const StreamBlock& block : blocks)
    if (&block != &*largest) add(block);
  return laid;
}

std::uint64_t nb_pages(std::span<const RamBlock> blocks) noexcept {
  std::uint64_t sum = 0;
  for (const RamBlock& block : blocks) sum += block.nb_pages;
  return sum;
}

std::vector<Section> to_sections(const State& state) {
  Section header{SectionType::kQemuRamHeader, {}};
  put_ram_header(header.bytes, state);
  return {{SectionType::kQemuConfig, state.config},
          std::move(header),
          {SectionType::kQemuDevices, state.devices}};
}

std::size_t PageWriter::header(std::span<std::byte, kMaxPageHeaderBytes> out, Gfn page,
                               bool zero) noexcept {
  const auto after = std::ranges::upper_bound(blocks_, page.value, {}, &RamBlock::first_page);
  if (after == blocks_.begin()) return 0;
  const RamBlock& block = *std::prev(after);
  if (page.value - block.first_page >= block.nb_pages) return 0;
  const bool named = &block != last_;
  if (named && block.name.size() > kMaxNameBytes) return 0;
  std::uint64_t flags = zero ? kRamZero : kRamPage;
  if (!named) flags |= kRamContinue;
  const Be64 head{(page.value - block.first_page) * kPageSize | flags};
  std::memcpy(out.data(), &head, sizeof head);
  std::size_t n = sizeof head;
  if (named) {
    out[n++] = static_cast<std::byte>(block.name.size());
    std::memcpy(out.data() + n, block.name.data(), block.name.size());
    n += block.name.size();
    last_ = &block;
  }
  if (zero) out[n++] = std::byte{0};  // what fills it
  return n;
}

bool PageWriter::append(Bytes& out, Gfn page, std::span<const std::byte> bytes) {
  std::array<std::byte, kMaxPageHeaderBytes> head;
  const std::size_t n = header(head, page, bytes.empty());
  if (n == 0) return false;
  put_bytes(out, std::span{head}.first(n));
  put_bytes(out, bytes);
  return true;
}

Result<Bytes> postcopy_preamble(const State& state, std::span<const Gfn> vital,
                                const PageBytes& bytes) {
  return without_exceptions([&] { return preamble(state, vital, bytes); });
}

Bytes postcopy_end(const State& state) {
  Bytes out;
  end_ram_section(out, state);
  begin_section(out, kSectionEnd, state);
  end_ram_section(out, state);
  put<std::uint8_t>(out, kEof);
  return out;
}

Bytes ask_received(const State& state) {
  Bytes out;
  for (const RamBlock& block : state.blocks) {
    Bytes name;
    put_name(name, block.name);
    put_command(out, kSendReceived, name);
  }
  return out;
}

Bytes postcopy_resume(const State& state) {
  Bytes out;
  put_command(out, kPostcopyResume);
  begin_section(out, kSectionPart, state);
  return out;
}

Result<Bytes> precopy_stream(const State& state, std::size_t left_out, const PageBytes& bytes) {
  return without_exceptions([&] { return precopy(state, left_out, bytes); });
}

}  // namespace snowfabric::qemu
