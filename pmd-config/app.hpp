// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/seal.hpp"
#include "pmd-config/capabilities.hpp"
#include "pmd-config/eal.hpp"
#include "pmd-config/port.hpp"
#include "pmd-config/telemetry.hpp"

namespace CLI {
class App;  // its header takes seconds to read: who adds options has it
}

/// What memserver-dpdk and memtap-dpdk have in common around their workers.
namespace snowfabric {

/// Options of every process with a port.
struct AppOptions {
  std::string profile = "net_af_packet";
  std::string device;
  unsigned mtu = 0;  ///< 0: the profile's
  std::string idle;  ///< empty: the profile's
  std::string lcores;
  double rx_loss_percent = 0;
  std::uint64_t seed = 1;
  std::string key_file;  ///< empty: none
  std::string stats_file;
  std::string log_level = "info";
  bool sandbox = true;
  std::vector<std::string> eal_args;  ///< what followed `--`
};

/// Adds the options to a parser; `--help` and `--version` come with it.
void add_app_options(CLI::App& cli, AppOptions& options);

/// Parses argv; the part behind `--` goes to EAL untouched.
/// @return nullopt: go on; else exit with this status (help, version or usage error were printed)
[[nodiscard]] std::optional<int> parse_command_line(CLI::App& cli, int argc, char** argv,
                                                    AppOptions& options);

/// The asynchronous logger of the control side, set as spdlog's default. Before EAL init: its
/// thread must not inherit the lcore's CPU mask.
void start_logging(const std::string& program, const std::string& level);

/// SIGINT and SIGTERM set it; SIGPIPE is ignored. Call once, on the main thread.
[[nodiscard]] const std::atomic<bool>& stop_on_signals();

/// Does what such a signal does.
void request_stop() noexcept;

/// What the processes of a group seal their frames by.
/// @param key           none: frames go in the clear
/// @param max_senders   as of Seal::make
/// @return nullptr: no key; or as Seal::make
[[nodiscard]] Result<std::unique_ptr<Seal>> make_seal(const std::optional<GroupKey>& key,
                                                      std::size_t max_senders);
/// @return the key of options.key_file, none if there is no such option; or as GroupKey::read
[[nodiscard]] Result<std::optional<GroupKey>> read_key(const AppOptions& options);
/// What engines may take for a port's MTU. @return EMSGSIZE: a page needs too many frames then
[[nodiscard]] Result<std::uint16_t> engine_mtu(const Port& port, const Seal* seal);

/// EAL and the port, up. Members are destroyed in the right order: port, then EAL.
struct Datapath {
  Profile profile;
  Eal eal;
  Port port;
};
/// @param role    "server" or "client", for net_memif
/// @param groups  multicast groups to receive
[[nodiscard]] Result<Datapath> start_datapath(const AppOptions& options, const std::string& program,
                                              const std::string& role, std::vector<MacAddr> groups);

/// Enters the sandbox, unless the options say no, and logs what holds from now on. When all is set
/// up that needs more; before the first frame is looked at.
/// @param wanted  capabilities of which the caller has use, beside those of the port
/// @param files   to be written later; empty names do not matter
/// @return as enter_sandbox; EACCES: the folder of one of them takes no new file any more
[[nodiscard]] Result<void> confine(const AppOptions& options, const Profile& profile,
                                   Capabilities wanted, std::initializer_list<std::string> files);

/// Of the sandbox, for telemetry.
void append_sandbox(Snapshot& out);

/// A thread that calls `look` ten times a second and once more at the end, on the CPUs EAL leaves
/// to control work. After EAL init.
class Watcher {
 public:
  explicit Watcher(std::function<void()> look);
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;
  ~Watcher();

 private:
  static void* run(void* self);

  std::function<void()> look_;
  std::atomic<bool> stop_{false};
  pthread_t thread_{};
  bool started_ = false;
};

/// Writes text to a file so that readers see all of it or nothing. @return errno of the failed call
[[nodiscard]] Result<void> write_file(const std::string& path, const std::string& text);

/// A snapshot as a JSON object, for `--stats`.
[[nodiscard]] std::string to_json(const Snapshot& snapshot);

/// A number no other start of a process draws; never 0.
[[nodiscard]] std::uint64_t random_id();

}  // namespace snowfabric
