// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string.h>  // explicit_bzero

#include <cstddef>
#include <memory>
#include <vector>

namespace snowfabric {

/// Wipes memory before it gives it back.
template <class T>
struct WipingAllocator {
  using value_type = T;

  WipingAllocator() = default;
  template <class U>
  constexpr WipingAllocator(const WipingAllocator<U>&) noexcept {}

  [[nodiscard]] T* allocate(std::size_t n) { return std::allocator<T>{}.allocate(n); }
  void deallocate(T* first, std::size_t n) noexcept {
    explicit_bzero(first, n * sizeof(T));
    std::allocator<T>{}.deallocate(first, n);
  }
  bool operator==(const WipingAllocator&) const = default;
};

/// Bytes of which no copy is left behind when it grows or ends: a key, or a file that has one.
using SecretBytes = std::vector<std::byte, WipingAllocator<std::byte>>;

}  // namespace snowfabric
