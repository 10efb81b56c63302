// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>

#include <atomic>
#include <string>

#include "memserver-dpdk/image.hpp"

namespace snowfabric {

/// write_checkpoint() beside a memserver that serves, on a thread of its own and the CPUs EAL
/// leaves to control work; the log says how it went. After EAL init.
class CheckpointJob {
 public:
  /// @param image  borrowed
  /// @param path   empty: nothing is written
  CheckpointJob(const Image& image, std::string path);
  CheckpointJob(const CheckpointJob&) = delete;
  CheckpointJob& operator=(const CheckpointJob&) = delete;
  ~CheckpointJob();  ///< gives it up, if it has not ended

 private:
  static void* run(void* self);

  const Image& image_;
  const std::string path_;
  std::atomic<bool> stop_{false};
  pthread_t thread_{};
  bool started_ = false;
};

}  // namespace snowfabric
