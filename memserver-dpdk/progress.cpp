// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "fabric/base/frame_number.hpp"

namespace snowfabric {
namespace {

constexpr Nanos kRedraw = std::chrono::milliseconds{100};
constexpr std::uint64_t kBarWidth = 30;

double seconds(Nanos t) { return std::chrono::duration<double>{t}.count(); }

double gigabytes_per_s(const ProgressState& state) {
  const double s = seconds(state.elapsed);
  return s > 0 ? static_cast<double>(state.done_bytes) / 1e9 / s : 0;
}

}  // namespace

std::string progress_line(const ProgressState& state) {
  // The total can be 0 or too small: a bar never runs over its end.
  const double part = state.total_bytes == 0
                          ? 1.0
                          : std::min(1.0, static_cast<double>(state.done_bytes) /
                                              static_cast<double>(state.total_bytes));
  const auto filled = static_cast<std::uint64_t>(part * static_cast<double>(kBarWidth));
  return fmt::format("{} [{:#<{}}{:.<{}}] {:3}%  {:.1f} GB/s", state.task, "", filled, "",
                     kBarWidth - filled, static_cast<int>(part * 100), gigabytes_per_s(state));
}

std::string summary_line(const ProgressState& state) {
  return fmt::format("{}: {} pages, {:.1f} MB in {:.2f} s, {:.1f} GB/s", state.task,
                     state.done_bytes / kPageSize, static_cast<double>(state.done_bytes) / 1e6,
                     seconds(state.elapsed), gigabytes_per_s(state));
}

Progress::Progress(std::string task, std::uint64_t total_bytes, int fd)
    : task_{std::move(task)}, total_bytes_{total_bytes}, fd_{fd}, tty_{::isatty(fd) == 1} {
  if (!tty_) print(fmt::format("{}: {:.1f} MB\n", task_, static_cast<double>(total_bytes_) / 1e6));
}

Progress::~Progress() {
  // "\r" and erase-to-end put the summary where the bar was
  print(fmt::format("{}{}\n", tty_ ? "\r\x1b[K" : "", summary_line(state())));
}

void Progress::add(std::uint64_t nb_bytes) noexcept {
  done_bytes_.fetch_add(nb_bytes, std::memory_order_relaxed);
  if (!tty_) return;
  const Nanos::rep now = Nanos{Clock::now() - start_}.count();
  Nanos::rep due = next_draw_.load(std::memory_order_relaxed);
  // Whoever moves the deadline draws; the others go on scanning.
  if (now < due || !next_draw_.compare_exchange_strong(due, now + kRedraw.count())) return;
  print(fmt::format("\r{}", progress_line(state())));
}

ProgressState Progress::state() const {
  return {task_, done_bytes_.load(std::memory_order_relaxed), total_bytes_, Clock::now() - start_};
}

void Progress::print(const std::string& text) const noexcept {
  [[maybe_unused]] const ssize_t n = ::write(fd_, text.data(), text.size());
}

}  // namespace snowfabric
