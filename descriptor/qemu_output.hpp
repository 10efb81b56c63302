// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "fabric/base/endian.hpp"

/// Appends to a stream of QEMU.
namespace snowfabric::qemu {

template <std::unsigned_integral T>
void put(std::vector<std::byte>& out, T value) {
  const BigEndian<T> raw{value};
  out.resize(out.size() + sizeof raw);
  std::memcpy(out.data() + out.size() - sizeof raw, &raw, sizeof raw);
}

inline void put_bytes(std::vector<std::byte>& out, std::span<const std::byte> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

/// @param name  at most 255 bytes
inline void put_name(std::vector<std::byte>& out, std::string_view name) {
  put(out, static_cast<std::uint8_t>(name.size()));
  put_bytes(out, std::as_bytes(std::span{name}));
}

}  // namespace snowfabric::qemu
