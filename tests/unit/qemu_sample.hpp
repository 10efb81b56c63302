// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "descriptor/qemu_stream.hpp"

/// Streams of QEMU put together byte by byte, so that the tests do not lean on the writer they
/// test.
namespace snowfabric::testing {

/// A stream under construction. Integers are big-endian.
struct Stream {
  std::string bytes;

  Stream& number(std::uint64_t value, int nb_bytes) {
    while (nb_bytes-- > 0) bytes.push_back(static_cast<char>(value >> (8 * nb_bytes) & 0xff));
    return *this;
  }
  Stream& u8(std::uint64_t value) { return number(value, 1); }
  Stream& u16(std::uint64_t value) { return number(value, 2); }
  Stream& u32(std::uint64_t value) { return number(value, 4); }
  Stream& u64(std::uint64_t value) { return number(value, 8); }
  Stream& raw(std::string_view text) {
    bytes += text;
    return *this;
  }
  Stream& name(std::string_view text) { return u8(text.size()).raw(text); }
  Stream& fill(char c, std::size_t n) { return raw(std::string(n, c)); }
  Stream& add(const Stream& more) { return raw(more.bytes); }

  [[nodiscard]] std::vector<std::byte> vector() const {
    const auto all = std::as_bytes(std::span{bytes});
    return {all.begin(), all.end()};
  }
};

// Flags of a page.
inline constexpr std::uint64_t kZero = 0x02, kMemSize = 0x04, kFull = 0x08, kEos = 0x10,
                               kContinue = 0x20;
inline constexpr std::uint64_t kPc = kPageSize;  // "page of": addresses are kPc * page
inline constexpr std::uint32_t kRamId = 2;

// The sample parent: in the stream's order acpi (1 page), pc.ram (3), pc.rom (1).
inline constexpr std::uint64_t kNbSamplePages = 5;

inline Stream header() { return Stream{}.u32(0x5145564d).u32(3); }
inline Stream config() { return Stream{}.u8(7).u32(2).raw("pc"); }
inline Stream capability(std::string_view name) {
  return Stream{}.u8(5).name("configuration/capabilities").u32(1).u32(1).name(name);
}
inline Stream footer() { return Stream{}.u64(kEos).u8(0x7e).u32(kRamId); }
inline Stream ram_begin(std::uint64_t total_bytes) {
  return Stream{}.u8(1).u32(kRamId).name("ram").u32(0).u32(4).u64(total_bytes | kMemSize);
}
inline Stream ram_start() {
  return ram_begin(kNbSamplePages * kPc)
      .name("acpi")
      .u64(kPc)
      .name("pc.ram")
      .u64(3 * kPc)
      .name("pc.rom")
      .u64(kPc)
      .add(footer());
}
inline Stream ram_start_ignoring_shared() {
  return ram_begin(kNbSamplePages * kPc)
      .name("acpi")
      .u64(kPc)
      .u64(0xfffc0000)
      .name("pc.ram")
      .u64(3 * kPc)
      .u64(0)
      .name("pc.rom")
      .u64(kPc)
      .u64(0xc0000)
      .add(footer());
}
/// @param pages  what Stream{}.u64(...) says of them
inline Stream part(const Stream& pages) {
  return Stream{}.u8(2).u32(kRamId).add(pages).add(footer());
}
inline Stream acpi_page() { return Stream{}.u64(kFull).name("acpi").fill('a', kPc); }
inline Stream ram_pages() {
  return Stream{}
      .u64(0 * kPc | kFull)
      .name("pc.ram")
      .fill('0', kPc)
      .u64(2 * kPc | kFull | kContinue)
      .fill('2', kPc)
      .u64(1 * kPc | kZero | kContinue)
      .u8(0);
}
inline Stream rom_page() { return Stream{}.u64(kZero).name("pc.rom").u8('r'); }
/// The first holds what could be taken for the end: EOF, a description and its length.
inline Stream devices() {
  return Stream{}
      .u8(4)
      .u32(7)
      .name("timer")
      .u32(0)
      .u32(2)
      .raw(std::string_view{"\0\x06\0\0\0\x01{", 7})
      .u8(0x7e)
      .u32(7)
      .u8(4)
      .u32(9)
      .name("globalstate")
      .u32(0)
      .u32(1)
      .raw("running")
      .u8(0x7e)
      .u32(9);
}
inline Stream eof() { return Stream{}.u8(0); }
inline Stream description() { return Stream{}.u8(6).u32(16).raw(R"({"page_size":40})"); }
inline Stream sample(const Stream& pages) {
  return header()
      .add(config())
      .add(ram_start())
      .add(part(pages))
      .add(devices())
      .add(eof())
      .add(description());
}
inline Stream sample() { return sample(acpi_page().add(ram_pages()).add(rom_page())); }

/// The same with one page in full.
inline Stream short_sample() {
  return sample(Stream{}
                    .u64(kZero)
                    .name("acpi")
                    .u8('a')
                    .u64(0 * kPc | kZero)
                    .name("pc.ram")
                    .u8('0')
                    .u64(2 * kPc | kFull | kContinue)
                    .fill('2', kPc)
                    .u64(1 * kPc | kZero | kContinue)
                    .u8(0)
                    .add(rom_page()));
}

inline qemu::State sample_state() {
  return {.config = config().vector(),
          .ram_section_id = kRamId,
          .ram_version = 4,
          .blocks = {{"pc.ram", 0, 3, 3 * kPc}, {"acpi", 3, 1, kPc}, {"pc.rom", 4, 1, kPc}},
          .devices = devices().vector()};
}
/// One character a page of the image.
inline std::string sample_memory() {
  return std::string(
      "0\0"
      "2ar",
      5);
}

/// A parent that sends `stream`, and the image its memory goes to.
struct Reading {
  std::string image{};       ///< what was there before is '.'
  std::size_t piece = 1000;  ///< bytes a read
  std::string left_out{};    ///< block without a place
  std::uint64_t max_pages = 64;

  Result<qemu::State> read(std::string_view stream) {
    return qemu::read_stream(
        [&](std::span<std::byte> out) -> Result<std::size_t> {
          const std::size_t n = std::min({out.size(), stream.size(), piece});
          std::ranges::copy(std::as_bytes(std::span{stream.substr(0, n)}), out.begin());
          stream.remove_prefix(n);
          return n;
        },
        [&](std::span<const RamBlock> blocks) -> Result<std::vector<std::span<std::byte>>> {
          image.assign(qemu::nb_pages(blocks) * kPageSize, '.');
          const auto memory = std::as_writable_bytes(std::span{image});
          std::vector<std::span<std::byte>> places;
          for (const RamBlock& b : blocks)
            places.push_back(b.name == left_out
                                 ? std::span<std::byte>{}
                                 : memory.subspan(b.first_page * kPageSize, b.used_bytes));
          return places;
        },
        max_pages);
  }
  Error error_of(const Stream& stream) {
    const auto state = read(stream.bytes);
    return state ? Error{0, "accepted"} : state.error();
  }
  /// One character a page, '?' where it is not one character all over.
  [[nodiscard]] std::string memory() const {
    std::string pages;
    for (std::size_t at = 0; at < image.size(); at += kPageSize) {
      const auto page = std::string_view{image}.substr(at, kPageSize);
      pages.push_back(page.find_first_not_of(page[0]) == page.npos ? page[0] : '?');
    }
    return pages;
  }
};

}  // namespace snowfabric::testing
