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
#include "memtap-dpdk/guest_listener.hpp"
#include "memtap-dpdk/qemu_guest.hpp"
#include "memtap-dpdk/worker.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

struct TapOptions : AppOptions {
  std::string descriptor;  ///< file; names image, epoch and server, and is needed for QEMU clones
  std::string image_id;    ///< hexadecimal
  std::uint32_t epoch = 1;
  std::string server;  ///< MAC address; empty: ask by broadcast
  std::string socket;
  std::string presence_dir;  ///< empty: SOCKET.d
  std::uint32_t prefetch_pages = 8;
  std::string prefetch_list;
  std::string working_set;  ///< file to load; empty: the descriptor's
  std::string record;       ///< file to write the working set to
  bool keep = true;         ///< pages for clones that come later
  std::uint32_t buffer_pages = 256;
  std::uint32_t max_guests = 64;
  double give_up_s = 10;
  std::uint64_t max_image_gib = 256;
  double min_rto_ms = 1;
};

void add_tap_options(CLI::App& cli, TapOptions& options);

/// Pages as read_prefetch_list() reads them.
[[nodiscard]] std::string to_list(std::span<const PageRange> ranges);

/// Page numbers and ranges ("17", "0x20-0x3f") of a prefetch list, one a line; # begins a comment.
/// @return EINVAL with file:line; or the errno of reading it
[[nodiscard]] Result<std::vector<PageRange>> read_prefetch_list(const std::string& path);

/// The image to fetch, and what clones start from if there is a descriptor.
struct TapImage {
  std::uint64_t image_id = 0;
  std::uint32_t epoch = 0;
  std::optional<MacAddr> server;
  std::uint64_t nb_pages = 0;      ///< 0: the memserver says it
  std::optional<QemuSeed> qemu{};  ///< for clones that are QEMUs
  std::vector<PageRange> prefetch{}, working_set{};
};

/// @return EINVAL: an option is wrong or missing; or as read_descriptor
[[nodiscard]] Result<TapImage> image_of(const TapOptions& options);

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
  [[nodiscard]] std::string image_name() const;
  void open_listener();
  void look_at_server();
  [[nodiscard]] bool waits_for_welcome(Nanos now);
  void look_at_guests(Nanos now);
  void keep_pages();
  void write_record();
  void greet(ProcessGuest& guest);
  void bury(const ProcessGuest& guest);
  void stop_with(int errnum, std::string what);
  void sum_counters() noexcept;

  const TapOptions& options_;
  const TapImage& image_;
  ClientEngine& engine_;
  ClientWorker& worker_;
  HostStats host_stats_;
  GuestCounters totals_, of_gone_;
  std::unique_ptr<KeptImage> kept_;
  std::unique_ptr<GuestListener> listener_;
  std::unique_ptr<Host> host_;
  std::uint64_t nb_written_ = 0;  // pages of the working set
  std::uint64_t nb_mapped_ = 0;   // pages kept when they were last unmapped
  Nanos next_second_{0};
  mutable std::mutex by_id_mutex_;  // taken when a guest comes or goes, and by telemetry
  std::map<std::uint32_t, const ProcessGuest*> by_id_;
  ClientState last_state_ = ClientState::kJoining;
  Nanos join_began_ = kNever, next_wait_log_ = kNever;
  bool was_refused_ = false;
  std::uint64_t last_failed_ = 0;
  Nanos next_failed_log_ = kNever;
  Nanos quiet_until_ = kNever;  // a refusal that repeats is logged once a second
  Result<void> verdict_;
};

/// Runs memtap until a signal. @return what stopped it from starting, or from going on
[[nodiscard]] Result<void> tap(const TapOptions& options);

}  // namespace snowfabric
