// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "tools/bench_guest.hpp"

namespace snowfabric::bench {

/// Memory whose pages are missing, behind a userfaultfd. Threads of this process fault on it.
class MissingMemory {
 public:
  /// @return ENOSYS: no userfaultfd; ENOMEM
  [[nodiscard]] static Result<MissingMemory> make(std::uint64_t nb_pages);

  /// All pages are missing again.
  void forget() noexcept;
  /// None is missing any more: who waits reads zeros.
  void give_up() noexcept;

  [[nodiscard]] int uffd() const noexcept { return uffd_.get(); }
  [[nodiscard]] std::uint64_t base() const noexcept {
    return reinterpret_cast<std::uintptr_t>(bytes_.get());
  }
  [[nodiscard]] const std::byte* page(std::uint64_t page) const noexcept {
    return bytes_.get() + page * kPageSize;
  }

 private:
  UniqueFd uffd_;
  std::unique_ptr<std::byte[], Unmap> bytes_;
};

}  // namespace snowfabric::bench
