// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>

namespace snowfabric {

/// One writer, any readers: compiles to mov/add/mov without a locked instruction.
class Counter {
 public:
  void add(std::uint64_t n) noexcept { v_.store(read() + n, std::memory_order_relaxed); }
  void set(std::uint64_t v) noexcept { v_.store(v, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t read() const noexcept { return v_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> v_{0};
};

}  // namespace snowfabric
