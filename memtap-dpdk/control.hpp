// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "memtap-dpdk/guest_listener.hpp"
#include "memtap-dpdk/worker.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

struct TapOptions : AppOptions {
  std::string image_id;  ///< hexadecimal
  std::uint32_t epoch = 1;
  std::string server;  ///< MAC address; empty: ask by broadcast
  std::string socket;
  std::string presence_dir;  ///< empty: SOCKET.d
  std::uint32_t prefetch_pages = 8;
  std::string prefetch_list;
  std::uint32_t buffer_pages = 256;
  std::uint32_t max_guests = 64;
  double give_up_s = 10;
  double min_rto_ms = 1;
};

void add_tap_options(CLI::App& cli, TapOptions& options);

/// Page numbers and ranges ("17", "0x20-0x3f") of a prefetch list, one a line; # begins a comment.
/// @return EINVAL with file:line; or the errno of reading it
[[nodiscard]] Result<std::vector<PageRange>> read_prefetch_list(const std::string& path);

/// Guests that come and go, and the state of the join: called by the worker between turns.
class GuestControl {
 public:
  GuestControl(const TapOptions& options, ClientEngine& engine, ClientWorker& worker);
  GuestControl(const GuestControl&) = delete;
  GuestControl& operator=(const GuestControl&) = delete;

  void step(Nanos now);
  /// Before the end. Guests whose memory is not complete are killed: without us they would read
  /// zeros.
  void shut_down();

  [[nodiscard]] const HostStats& host_stats() const noexcept { return host_stats_; }
  /// All guests', also those that have gone; brought up to date by step().
  [[nodiscard]] const GuestCounters& guest_totals() const noexcept { return totals_; }
  /// Why the loop was stopped, if not by a signal.
  [[nodiscard]] const Result<void>& verdict() const noexcept { return verdict_; }

 private:
  void open_listener();
  void look_at_server();
  void look_at_guests(Nanos now);
  void stop_with(int errnum, std::string what);
  void sum_counters() noexcept;

  const TapOptions& options_;
  ClientEngine& engine_;
  ClientWorker& worker_;
  HostStats host_stats_;
  GuestCounters totals_, of_gone_;
  std::unique_ptr<GuestListener> listener_;
  std::unique_ptr<Host> host_;
  ClientState last_state_ = ClientState::kJoining;
  std::uint64_t last_failed_ = 0;
  Nanos quiet_until_ = kNever;  // a refusal that repeats is logged once a second
  Result<void> verdict_;
};

/// Runs memtap until a signal. @return what stopped it from starting, or from going on
[[nodiscard]] Result<void> tap(const TapOptions& options);

}  // namespace snowfabric
