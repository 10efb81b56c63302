// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/endian.hpp"
#include "fabric/crc32c.hpp"

/// Descriptors for tests, and the file's bytes built without the code under test.
namespace snowfabric::test {

inline std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span{text});
  return {bytes.begin(), bytes.end()};
}

/// Every field has a value of its own.
inline Descriptor sample_descriptor() {
  Descriptor d;
  d.image_id = 0x1122334455667788;
  d.epoch = 7;
  d.spaces = {{0, 100}, {1, 5}};
  d.blocks = {{"pc.ram", 0, 64, 64 * kPageSize}, {"/rom@etc/acpi/tables", 70, 2, 5000}};
  d.sections = {{SectionType::kQemuConfig, bytes_of("cfg")},
                {SectionType::kQemuDevices, std::vector<std::byte>(300, std::byte{0xd5})}};
  d.group = group_address(d.image_id);
  d.server = MacAddr{{2, 0, 0, 0, 0, 1}};
  d.machine_args = {"qemu-system-x86_64", "-M", "pc", ""};
  d.frozen_at_ns = 1'700'000'000'123'456'789;
  d.zero_pages = {{Gfn{0}, 1}, {Gfn{3}, 4}, {Gfn{90}, 10}};
  d.absent_pages = {{Gfn{50}, 3}, {Gfn{53}, 1}};
  d.working_set = {{Gfn{60}, 2}, {Gfn{1}, 2}, {Gfn{99}, 1}};
  d.parent_name = "web";
  for (std::size_t i = 0; i < d.parent_uuid.size(); ++i)
    d.parent_uuid[i] = static_cast<std::uint8_t>(0xa0 + i);
  return d;
}

inline constexpr std::size_t kHeaderBytes = 32;

/// A header around any body, its checksums right. docs/descriptor-format.md, "Header".
inline SecretBytes sealed(std::span<const std::byte> body, std::uint32_t version = 1,
                          std::uint32_t flags = 0) {
  const auto magic = bytes_of("SFVMDESC");
  SecretBytes file(magic.begin(), magic.end());
  const auto put = [&file](auto big_endian) {
    const auto bytes = std::as_bytes(std::span{&big_endian, 1});
    file.insert(file.end(), bytes.begin(), bytes.end());
  };
  put(Be32{version});
  put(Be32{flags});
  put(Be64{body.size()});
  put(Be32{crc32c(body)});
  put(Be32{crc32c(file)});
  file.insert(file.end(), body.begin(), body.end());
  return file;
}

// Protobuf's wire format: field number and wire type, then the value.
inline std::string varint(std::uint64_t value) {
  std::string text;
  for (; value >= 0x80; value >>= 7U) text += static_cast<char>(value | 0x80U);
  return text + static_cast<char>(value);
}
inline std::string number_field(unsigned field, std::uint64_t value) {
  return varint(field << 3U) + varint(value);
}
inline std::string bytes_field(unsigned field, std::string_view value) {
  return varint(field << 3U | 2U) + varint(value.size()) + std::string{value};
}
inline std::string fixed64_field(unsigned field, std::uint64_t value) {
  std::string text = varint(field << 3U | 1U);
  for (int i = 0; i < 8; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

/// The sample's body with more fields behind it: a later value replaces a single one and is added
/// to a repeated one.
inline SecretBytes sample_with(std::string_view fields) {
  const auto good = encode(sample_descriptor()).value();
  std::vector<std::byte> body(good.begin() + kHeaderBytes, good.end());
  const auto more = bytes_of(fields);
  body.insert(body.end(), more.begin(), more.end());
  return sealed(body);
}

inline Error decode_error(std::span<const std::byte> file) {
  const auto descriptor = decode(file);
  return descriptor ? Error{0, "accepted"} : descriptor.error();
}
inline Error encode_error(const Descriptor& d) {
  const auto file = encode(d);
  return file ? Error{0, "accepted"} : file.error();
}

}  // namespace snowfabric::test
