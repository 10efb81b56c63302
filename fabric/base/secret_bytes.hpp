// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string.h>  // explicit_bzero

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace snowfabric {

/// Also where nobody reads it any more.
inline void wipe(std::span<std::byte> bytes) noexcept {
  explicit_bzero(bytes.data(), bytes.size());
}

/// Wipes memory before it gives it back.
/// @tparam Source  an allocator, where the memory is from
template <class T, template <class> class Source = std::allocator>
struct WipingAllocator {
  using value_type = T;
  template <class U>
  struct rebind {
    using other = WipingAllocator<U, Source>;
  };

  WipingAllocator() = default;
  template <class U>
  constexpr WipingAllocator(const WipingAllocator<U, Source>&) noexcept {}

  [[nodiscard]] T* allocate(std::size_t n) { return Source<T>{}.allocate(n); }
  void deallocate(T* first, std::size_t n) noexcept {
    wipe(std::as_writable_bytes(std::span{first, n}));
    Source<T>{}.deallocate(first, n);
  }
  bool operator==(const WipingAllocator&) const = default;
};

/// Bytes of which no copy is left behind when it grows or ends: a key, a file that has one, or
/// pages of a guest.
using SecretBytes = std::vector<std::byte, WipingAllocator<std::byte>>;

}  // namespace snowfabric
