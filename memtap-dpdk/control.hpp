// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/result.hpp"
#include "memtap-dpdk/completions.hpp"
#include "memtap-dpdk/guest_listener.hpp"
#include "memtap-dpdk/housekeeping.hpp"
#include "memtap-dpdk/kept_image.hpp"
#include "memtap-dpdk/options.hpp"
#include "memtap-dpdk/server_watch.hpp"
#include "memtap-dpdk/worker.hpp"

namespace snowfabric {

/// Guests that come and go, and the state of the join: called by the worker between turns.
class GuestControl {
 public:
  GuestControl(const TapOptions& options, const TapImage& image, ClientEngine& engine,
               ClientWorker& worker);
  GuestControl(const GuestControl&) = delete;
  GuestControl& operator=(const GuestControl&) = delete;

  void step(Nanos now);
  /// Before the end. Guests whose memory is not complete are killed: without us they would read
  /// zeros.
  void shut_down();

  [[nodiscard]] const HostStats& host_stats() const noexcept { return host_stats_; }
  /// All guests', also those that have gone; brought up to date by step().
  [[nodiscard]] const GuestCounters& guest_totals() const noexcept { return totals_; }
  /// For telemetry, from any thread: process by guest id, and one guest's counters.
  [[nodiscard]] Snapshot guest_pids() const;
  [[nodiscard]] std::optional<Snapshot> guest_counters(std::string_view id) const;
  /// Why the loop was stopped, if not by a signal.
  [[nodiscard]] const Result<void>& verdict() const noexcept { return verdict_; }

 private:
  void open_listener(Nanos now);
  void look_at_guests(Nanos now);
  void report_failed(Nanos now);
  void keep_pages(const ImageGeometry& geometry);
  void keep_house();
  void greet(ProcessGuest& guest);
  void bury(const ProcessGuest& guest);
  void stop_with(Error error);
  [[nodiscard]] bool pages_come(Nanos now) noexcept;
  void sum_counters() noexcept;

  const TapOptions& options_;
  const TapImage& image_;
  ClientEngine& engine_;
  ClientWorker& worker_;
  ServerWatch server_;
  HostStats host_stats_;
  GuestCounters totals_, of_gone_;
  std::unique_ptr<KeptImage> kept_;
  std::unique_ptr<GuestListener> listener_;
  std::unique_ptr<Host> host_;
  Completions completions_;
  std::uint64_t nb_rx_pages_ = 0;
  Nanos last_page_ = kNever;
  std::unique_ptr<Housekeeping> housekeeping_;
  bool said_full_ = false;        // of the record
  std::uint64_t nb_written_ = 0;  // pages of the working set
  std::uint64_t nb_mapped_ = 0;   // pages kept when they were last unmapped
  Nanos next_second_{0};
  mutable std::mutex by_id_mutex_;  // taken when a guest comes or goes, and by telemetry
  std::map<std::uint32_t, const ProcessGuest*> by_id_;
  std::uint64_t last_failed_ = 0, last_overwrote_ = 0;
  Nanos next_failed_log_ = kNever;
  Nanos quiet_until_ = kNever;  // a refusal that repeats is logged once a second
  Result<void> verdict_;
};

/// Runs memtap until a signal. @return what stopped it from starting, or from going on
[[nodiscard]] Result<void> tap(const TapOptions& options);

}  // namespace snowfabric
