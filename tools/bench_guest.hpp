// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/image.hpp"
#include "memtap-dpdk/guest_adapter.hpp"

namespace snowfabric::bench {

struct Unmap {
  std::size_t nb_bytes = 0;
  void operator()(std::byte* memory) const noexcept;
};

/// The memory a benchmark receives into: private, and in place from the start, so that no run pays
/// for page faults.
class Arena {
 public:
  /// @return errno of mmap(2)
  [[nodiscard]] static Result<Arena> make(std::uint64_t nb_pages);

  [[nodiscard]] std::uint64_t nb_pages() const noexcept {
    return memory_.get_deleter().nb_bytes / kPageSize;
  }
  [[nodiscard]] std::byte* page(Gfn gfn) const noexcept {
    return memory_.get() + gfn.value * kPageSize;
  }
  /// The same in a new file without pages, by write(2): who receives into it pays for them, but for
  /// no faults.
  /// @return errno of open(2), ftruncate(2) or mmap(2)
  [[nodiscard]] static Result<Arena> in_file(const std::string& path, std::uint64_t nb_pages);
  /// Writes neighbouring pages. @return false: error() says why
  [[nodiscard]] bool put(Gfn first, std::span<const std::byte> pages) noexcept;
  /// errno of the first write(2) that failed, or 0.
  [[nodiscard]] int error() const noexcept { return error_; }
  void put_zeros(Gfn page) noexcept;
  /// Forgets what a run left, so that verifying the next one means something.
  void clear() noexcept;
  /// Whether every byte is the image's.
  [[nodiscard]] bool equals(const Image& image) const noexcept;

 private:
  explicit Arena(std::unique_ptr<std::byte[], Unmap> memory, UniqueFd file = {})
      : memory_{std::move(memory)}, file_{std::move(file)} {}
  std::unique_ptr<std::byte[], Unmap> memory_;
  UniqueFd file_;  // none: there is but memory
  int error_ = 0;
};

/// A clone without a VM: installs by memcpy into an arena. What a page costs here is what the
/// fabric costs, not what a hypervisor does.
class ArenaGuest final : public GuestAdapter {
 public:
  /// @param complete  set when the last page is in, or one cannot be
  ArenaGuest(Arena& arena, std::atomic<bool>& complete);

  /// From now on it faults its pages in ascending order, this many at once. Without, none.
  void begin_faulting(std::size_t nb_vcpus) noexcept { nb_vcpus_ = nb_vcpus; }

  std::size_t poll_faults(std::span<Gfn> out) noexcept override;
  Install install(Gfn first, std::span<const std::byte> pages) noexcept override;
  Install install_zeros(PageRange pages) noexcept override;
  [[nodiscard]] bool waits(Gfn) const noexcept override { return false; }
  FailMeans fail(Gfn) noexcept override { return FailMeans::kRefused; }
  bool kill() noexcept override { return false; }
  [[nodiscard]] bool gone() const noexcept override { return false; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return {}; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

  [[nodiscard]] std::uint64_t nb_installed() const noexcept { return nb_installed_; }
  /// TSC when the last page was in; 0: some are missing.
  [[nodiscard]] std::uint64_t completed_at() const noexcept { return completed_at_; }

 private:
  void note_installed(std::uint64_t nb_pages) noexcept;

  Arena& arena_;
  std::atomic<bool>& complete_;
  std::vector<Presence::Word> words_;
  Presence presence_;
  GuestCounters counters_;
  std::size_t nb_vcpus_ = 0;
  std::uint64_t next_fault_ = 0, nb_installed_ = 0, completed_at_ = 0;
};

}  // namespace snowfabric::bench
