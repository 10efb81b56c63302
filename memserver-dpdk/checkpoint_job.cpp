// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/checkpoint_job.hpp"

#include <rte_lcore.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <spdlog/spdlog.h>

#include "memserver-dpdk/checkpoint.hpp"

namespace snowfabric {

CheckpointJob::CheckpointJob(const Image& image, std::string path)
    : image_{image}, path_{std::move(path)} {
  if (path_.empty()) return;
  started_ = rte_ctrl_thread_create(&thread_, "sf-checkpoint", nullptr, run, this) == 0;
  if (!started_) spdlog::error("checkpoint {} is not written: no thread", path_);
}

CheckpointJob::~CheckpointJob() {
  stop_ = true;
  if (started_) pthread_join(thread_, nullptr);
}

void* CheckpointJob::run(void* self) {
  const auto& job = *static_cast<CheckpointJob*>(self);
  const auto ok = write_checkpoint(job.image_, job.path_, STDERR_FILENO, job.stop_);
  if (ok)
    spdlog::info("checkpoint {} is complete: `memserver-dpdk --restore` serves it", job.path_);
  else if (ok.error().errnum == ECANCELED)
    spdlog::warn("checkpoint {} is not written: stopped", job.path_);
  else
    spdlog::error("checkpoint {} is not written: {}: {}", job.path_, ok.error().what,
                  std::strerror(ok.error().errnum));
  return nullptr;
}

}  // namespace snowfabric
