// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>
#include <sched.h>

namespace snowfabric {

/// The CPUs on which a thread may run. New threads inherit them from the one that makes them.
class CpuMask {
 public:
  /// The calling thread's.
  CpuMask() noexcept : known_{pthread_getaffinity_np(pthread_self(), sizeof cpus_, &cpus_) == 0} {}
  /// Moves the calling thread there. Without effect on a host whose CPUs do not fit in.
  void apply() const noexcept {
    if (known_) pthread_setaffinity_np(pthread_self(), sizeof cpus_, &cpus_);
  }

 private:
  cpu_set_t cpus_{};
  bool known_;
};

/// The calling thread, which EAL has pinned, runs on other CPUs while this lives: so do the threads
/// that it makes, among them TBB's workers, which stay there.
class OnCpus {
 public:
  explicit OnCpus(const CpuMask& cpus) noexcept { cpus.apply(); }
  OnCpus(const OnCpus&) = delete;
  OnCpus& operator=(const OnCpus&) = delete;
  ~OnCpus() { before_.apply(); }

 private:
  const CpuMask before_;
};

}  // namespace snowfabric
