// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/aside_memory.hpp"
#include "memserver-dpdk/shim_client.hpp"

namespace snowfabric {

/// A parent's RAM as it was at one instant, while the parent runs on: pages are read from the RAM
/// itself, and one that the parent is about to write is copied aside first. When the parent dies
/// the image stays; when this object goes, the parent writes freely.
/// Source: Documentation/admin-guide/mm/userfaultfd.rst of Linux, "Write Protect Notifications".
class CowMemory {
 public:
  /// Takes over the RAM of the process behind a shim's socket (docs/shim.md). The thread that sets
  /// pages aside may run where the caller may: not only on the CPU to which EAL pins an lcore.
  /// @return ECONNREFUSED and the like: no shim there; as
  ///         take_shim_memory; or what the call named reported
  static Result<std::unique_ptr<CowMemory>> attach(const std::string& shim_socket);

  CowMemory(const CowMemory&) = delete;
  CowMemory& operator=(const CowMemory&) = delete;
  ~CowMemory();

  /// Protects all of the RAM while the parent runs. Pages it writes from here on are let through
  /// and remembered, so that freeze() has little left to do.
  [[nodiscard]] Result<void> arm();
  /// The instant. @pre arm() was called and nothing of the parent runs
  /// @return pages that were written since arm()
  [[nodiscard]] Result<std::uint64_t> freeze();

  /// Whether the parent has written the page between arm() and freeze(). @pre both were called
  [[nodiscard]] bool written_before_freeze(Gfn page) const { return written_[page.value]; }

  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return pages_->nb_pages(); }
  /// The image; goes with this object.
  [[nodiscard]] const AsideMemory& pages() const noexcept { return *pages_; }
  /// Pages that were never touched before the instant, nor since: they are zero, and reading them
  /// would allocate them. Ascending. Control path, after freeze().
  [[nodiscard]] std::vector<PageRange> untouched() const;
  /// Of these pages nobody needs the bytes: the parent writes them without a copy, and they read as
  /// zeros from here on, but for those that it has written; others than ours do not matter.
  /// Control path, after freeze().
  void leave_out(std::span<const PageRange> pages);
  /// Sets aside all pages but the known zero ones, and lets the parent go: it writes freely, and
  /// may be frozen again by somebody else. Costs their memory. Control path, after freeze(); copy()
  /// may run meanwhile.
  void detach(const std::function<bool(Gfn)>& is_zero) noexcept;

 private:
  explicit CowMemory(ShimMemory memory);
  Result<void> map();
  Result<void> start();
  void end_thread() noexcept;
  static void* run(void* self);
  void serve();
  void on_write(std::uint64_t address);
  [[nodiscard]] Result<void> protect(Gfn first, std::uint64_t nb_pages, bool on);
  [[nodiscard]] const ShimRegion* region_at(std::uint64_t address) const noexcept;
  [[nodiscard]] const ShimRegion* region_of(Gfn page) const noexcept;

  UniqueFd uffd_, stop_;  // stop_: an eventfd that ends the thread
  std::vector<ShimRegion> regions_;
  std::span<std::byte> live_;  // read-only: the parent's RAM
  std::unique_ptr<AsideMemory> pages_;
  std::mutex mutex_;  // written_ and frozen_, between the thread and freeze(); then they are fixed
  std::vector<bool> written_;
  bool frozen_ = false;
  pthread_t thread_{};
  bool started_ = false;
};

}  // namespace snowfabric
