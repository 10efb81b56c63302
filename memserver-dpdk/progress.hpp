// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "fabric/base/time.hpp"

namespace snowfabric {

/// How far a long task has come.
struct ProgressState {
  std::string task;  ///< "scan image.raw"
  std::uint64_t done_bytes{};
  std::uint64_t total_bytes{};
  Nanos elapsed{};
};

/// While it runs: "scan image.raw [#####.....]  50%  1.2 GB/s".
[[nodiscard]] std::string progress_line(const ProgressState& state);
/// Afterwards: "scan image.raw: 65536 pages, 268.4 MB in 0.21 s, 1.2 GB/s".
[[nodiscard]] std::string summary_line(const ProgressState& state);

/// Shows a task's progress: on a terminal a bar that is redrawn in place, else one line when it
/// starts and one when it ends. Destruction ends it.
class Progress {
 public:
  Progress(std::string task, std::uint64_t total_bytes, int fd);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  /// Any thread. Redraws at most ten times a second.
  void add(std::uint64_t nb_bytes) noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  [[nodiscard]] ProgressState state() const;
  void print(const std::string& text) const noexcept;

  const std::string task_;
  const std::uint64_t total_bytes_;
  const int fd_;
  const bool tty_;
  const Clock::time_point start_ = Clock::now();
  std::atomic<std::uint64_t> done_bytes_{0};
  std::atomic<Nanos::rep> next_draw_{0};  // since start_
};

}  // namespace snowfabric
