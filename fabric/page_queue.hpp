// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {

/// First in, first out, of a capacity fixed at construction.
template <class T>
class RingBuffer {
 public:
  explicit RingBuffer(std::size_t capacity) : items_(capacity) {}

  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// @return false when full: the item is not taken
  [[nodiscard]] bool push(const T& item) noexcept {
    if (size_ == items_.size()) return false;
    std::size_t tail = head_ + size_;
    if (tail >= items_.size()) tail -= items_.size();
    items_[tail] = item;
    ++size_;
    return true;
  }
  /// @pre not empty
  [[nodiscard]] const T& front() const noexcept { return items_[head_]; }
  /// @pre not empty
  T pop() noexcept {
    const T item = items_[head_];
    if (++head_ == items_.size()) head_ = 0;
    --size_;
    return item;
  }

 private:
  std::vector<T> items_;
  std::size_t head_ = 0, size_ = 0;
};

/// Page numbers below 2^32, 4 bytes each.
using PageQueue = RingBuffer<std::uint32_t>;

}  // namespace snowfabric
