// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"

namespace snowfabric {

/// The RAM of a parent that runs on, as it was at one instant: pages are read where they lie, and
/// what the parent is about to change is copied aside first.
class AsideMemory {
 public:
  /// Reserves addresses for the copies; each costs memory once it is made.
  /// @param live  whole pages, where they lie; borrowed until all are aside
  [[nodiscard]] static Result<std::unique_ptr<AsideMemory>> make(std::span<const std::byte> live);
  AsideMemory(const AsideMemory&) = delete;
  AsideMemory& operator=(const AsideMemory&) = delete;
  ~AsideMemory();

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return where_.size(); }
  /// Bytes [offset, offset + out.size()) of a page as it was at the instant. Any thread.
  void copy(Gfn page, std::size_t offset, std::span<std::byte> out) const noexcept;

  /// Copies the page, before the parent may change it, unless it is aside. One thread at a time, as
  /// all that follow.
  void set_aside(Gfn page) noexcept;
  /// Likewise, with the bytes of a copy. @pre it is not aside
  void set_aside(Gfn page, std::span<const std::byte> bytes) noexcept;
  /// Nobody needs its bytes: it reads as zeros, unless it is aside already.
  void leave_out(Gfn page) noexcept;
  /// Copies made so far: each costs a page of memory. Any thread.
  [[nodiscard]] std::uint64_t nb_copies() const noexcept {
    return nb_copies_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] bool is_aside(Gfn page) const noexcept {
    return where_[page.value].load(std::memory_order_acquire) != Where::kLive;
  }
  /// All copies made; they read as zeros. It does so at its end. @pre nobody calls meanwhile
  void wipe_copies() noexcept;

 private:
  enum class Where : std::uint8_t {
    kLive,
    kCopied,
    kLeftOut,  ///< aside, but without a copy: it costs no memory
  };
  AsideMemory(std::span<const std::byte> live, std::span<std::byte> aside)
      : live_{live}, aside_{aside}, where_(live.size() / kPageSize) {}

  std::span<const std::byte> live_;
  std::span<std::byte> aside_;  // a copy lies at its page's own place
  std::vector<std::atomic<Where>> where_;
  std::atomic<std::uint64_t> nb_copies_{0};
};

}  // namespace snowfabric
