// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/aside_memory.hpp"
#include "xen-glue/nominated_ram.hpp"

namespace snowfabric {

/// A Xen domain's RAM as it was at one instant, while the domain runs on: a page is copied aside
/// when the domain first touches it. When the domain dies the image stays. When this object goes,
/// it gives the domain its pages back; should it fail or the process die, that is left to whoever
/// guards the domain.
class NominatedMemory {
 public:
  /// Once the domain runs it waits, at the pages it touches, for the thread that this starts, which
  /// may run where the caller may.
  /// @param calls  that `ram` stands on; its only user from here on
  /// @param given_back   called at the end, if the domain got everything or is gone
  /// @param progress_fd  where to show how many pages are given back, at the end
  /// @return what the call named reported
  [[nodiscard]] static Result<std::unique_ptr<NominatedMemory>> serve(
      std::shared_ptr<xen::XenCalls> calls, std::unique_ptr<xen::NominatedRam> ram,
      std::function<void()> given_back, std::optional<int> progress_fd);
  NominatedMemory(const NominatedMemory&) = delete;
  NominatedMemory& operator=(const NominatedMemory&) = delete;
  ~NominatedMemory();

  /// The image; goes with this object.
  [[nodiscard]] const AsideMemory& pages() const noexcept { return *pages_; }

 private:
  NominatedMemory(std::shared_ptr<xen::XenCalls> calls, std::unique_ptr<xen::NominatedRam> ram,
                  std::function<void()> given_back, std::optional<int> progress_fd);
  [[nodiscard]] Result<void> start();
  void end_thread() noexcept;
  static void* run(void* self);
  void serve_faults();
  bool answer_faults();
  void keep(const xen::PagingRequest& request) noexcept;
  [[nodiscard]] bool give_back() noexcept;
  [[nodiscard]] bool is_gone() noexcept;

  std::function<void()> given_back_;  // what it holds goes last
  std::shared_ptr<xen::XenCalls> calls_;
  std::unique_ptr<xen::NominatedRam> ram_;
  std::unique_ptr<AsideMemory> pages_;
  std::optional<int> progress_fd_;
  UniqueFd stop_;  // an eventfd that ends the thread
  pthread_t thread_{};
  bool started_ = false;
};

}  // namespace snowfabric
