// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/app.hpp"

#include <rte_lcore.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include "pmd-config/sandbox.hpp"

namespace snowfabric {
namespace {

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set by a signal handler");

void on_stop_signal(int) { request_stop(); }

}  // namespace

void add_app_options(CLI::App& cli, AppOptions& options) {
  cli.set_version_flag("--version", SNOWFABRIC_VERSION);
  cli.add_option("--profile", options.profile, "device profile: a name or a TOML file")
      ->capture_default_str();
  cli.add_option("--device", options.device, "kernel interface, PCI address or socket file");
  cli.add_option("--mtu", options.mtu, "MTU in bytes; default: the profile's or the interface's")
      ->check(CLI::Range(576, 9600));
  cli.add_option("--idle", options.idle, "what an idle poll loop does; default: the profile's")
      ->check(CLI::IsMember({"busy", "yield", "backoff"}));
  cli.add_option("--lcores", options.lcores, "lcore for the poll loop, as EAL's --lcores");
  cli.add_option("--rx-loss", options.rx_loss_percent,
                 "fault injection: lose this share of received frames, in percent")
      ->check(CLI::Range(0.0, 100.0));
  cli.add_option("--seed", options.seed, "seed of everything random")->capture_default_str();
  cli.add_option("--key", options.key_file,
                 "file of the group's key, 64 hexadecimal digits: frames are sealed by it, and "
                 "others dropped");
  cli.add_option("--stats", options.stats_file, "write all counters to this JSON file at the end");
  cli.add_option("--log-level", options.log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  cli.add_flag("!--no-sandbox", options.sandbox,
               "keep all privileges and system calls, and leave core dumps as they are");
  cli.footer("Arguments behind -- go to DPDK's EAL, e.g. -- --file-prefix=one -l 2");
}

std::optional<int> parse_command_line(CLI::App& cli, int argc, char** argv, AppOptions& options) {
  char** const end = argv + argc;
  char** const separator =
      std::find_if(argv + 1, end, [](const char* arg) { return std::strcmp(arg, "--") == 0; });
  if (separator != end) options.eal_args.assign(separator + 1, end);
  try {
    cli.parse(static_cast<int>(separator - argv), argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : 2;
  }
  return std::nullopt;
}

void start_logging(const std::string& program, const std::string& level) {
  spdlog::init_thread_pool(1024, 1);
  // nb: nobody who reads our stderr slowly may hold up a poll loop; the oldest lines go.
  auto logger = spdlog::create_async_nb<spdlog::sinks::stderr_color_sink_mt>(program);
  logger->set_pattern("%H:%M:%S.%e %n %^%l%$ %v");
  logger->set_level(spdlog::level::from_str(level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

void request_stop() noexcept { stop_requested.store(true, std::memory_order_relaxed); }

const std::atomic<bool>& stop_on_signals() {
  struct sigaction action{};
  action.sa_handler = on_stop_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  sigaction(SIGXFSZ, &action, nullptr);  // a file that grows too large is an error of its write
  return stop_requested;
}

Result<std::unique_ptr<Seal>> make_seal(const std::optional<GroupKey>& key,
                                        std::size_t max_senders) {
  if (!key) return nullptr;
  return Seal::make(*key, max_senders);
}

Result<std::optional<GroupKey>> read_key(const AppOptions& options) {
  if (options.key_file.empty()) return std::nullopt;
  auto key = GroupKey::read(options.key_file);
  if (!key) return std::unexpected(key.error());
  return std::optional{*key};
}

Result<std::uint16_t> engine_mtu(const Port& port, const Seal* seal) {
  const std::size_t mtu = port.mtu_bytes() - (seal != nullptr ? wire::kSealBytes : 0);
  if (wire::fragments_for_mtu(mtu) == 0)
    return fail(EMSGSIZE,
                fmt::format("MTU {} of {} has no room for {}fragments of pages", port.mtu_bytes(),
                            port.name(), seal != nullptr ? "sealed " : ""));
  return static_cast<std::uint16_t>(mtu);
}

Result<Datapath> start_datapath(const AppOptions& options, const std::string& program,
                                const std::string& role, std::vector<MacAddr> groups) {
  auto profile = load_profile(options.profile);
  if (!profile) return std::unexpected(profile.error());
  if (const auto idle = parse_idle(options.idle)) profile->idle.strategy = *idle;
  const auto mtu = resolve_mtu(*profile, options.device, options.mtu);
  if (!mtu) return std::unexpected(mtu.error());
  auto eal = Eal::init({.program = program,
                        .profile = *profile,
                        .iface = options.device,
                        .mtu = *mtu,
                        .role = role,
                        .lcores = options.lcores,
                        .file_prefix = {},
                        .extra_args = options.eal_args});
  if (!eal) return std::unexpected(eal.error());
  auto port = Port::open(
      {.profile = *profile, .name = {}, .mtu = options.mtu, .groups = std::move(groups)});
  if (!port) return std::unexpected(port.error());
  return Datapath{std::move(*profile), std::move(*eal), std::move(*port)};
}

Result<void> confine(const AppOptions& options, const Profile& profile, Capabilities wanted,
                     std::initializer_list<std::string> files) {
  if (!options.sandbox) {
    spdlog::warn("no sandbox: all privileges are kept, and a core dump may have keys");
    return {};
  }
  // Memory that a device or Xen works on counts as locked.
  const auto kept = enter_sandbox(wanted | profile.capabilities | capability(CAP_IPC_LOCK));
  if (!kept) return fail(kept.error().errnum, kept.error().what + "; --no-sandbox does without");
  for (const std::string& file : files) {
    if (file.empty()) continue;
    const std::string folder = std::filesystem::path{file}.parent_path();
    if (access(folder.empty() ? "." : folder.c_str(), W_OK) != 0)
      return fail(errno, fmt::format("write {} once the sandbox is entered: the folder has to be "
                                     "this user's; --no-sandbox does without",
                                     file));
  }
  spdlog::info("in the sandbox; capabilities kept: {}", to_string(*kept));
  return {};
}

void append_sandbox(Snapshot& out) {
  out.emplace_back("sandboxed", is_sandboxed() ? 1 : 0);
  out.emplace_back("forbidden_calls", nb_forbidden_calls());
}

Watcher::Watcher(std::function<void()> look) : look_{std::move(look)} {
  // std::thread would inherit the CPU mask of the polling lcore.
  started_ = rte_ctrl_thread_create(&thread_, "sf-watch", nullptr, run, this) == 0;
}

Watcher::~Watcher() {
  stop_.store(true, std::memory_order_relaxed);
  if (started_) pthread_join(thread_, nullptr);
  look_();
}

void* Watcher::run(void* self) {
  auto& watcher = *static_cast<Watcher*>(self);
  while (!watcher.stop_.load(std::memory_order_relaxed)) {
    watcher.look_();
    std::this_thread::sleep_for(std::chrono::milliseconds{200});
  }
  return nullptr;
}

Result<void> write_file(const std::string& path, const std::string& text) {
  const std::string draft = path + ".tmp";
  std::FILE* file = std::fopen(draft.c_str(), "w");
  if (file == nullptr) return fail(errno, fmt::format("open {}", draft));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;  // a full disk may show only here
  if (!written || !closed) {
    const int errnum = errno;
    std::remove(draft.c_str());
    return fail(errnum, fmt::format("write {}", draft));
  }
  if (std::rename(draft.c_str(), path.c_str()) != 0)
    return fail(errno, fmt::format("rename {} to {}", draft, path));
  return {};
}

std::string to_json(const Snapshot& snapshot) {
  nlohmann::ordered_json json;
  for (const auto& [name, value] : snapshot) json[name] = value;
  return json.dump(2) + "\n";
}

std::uint64_t random_id() {
  std::uint64_t id = 0;
  while (id == 0)
    if (getrandom(&id, sizeof id, 0) != sizeof id) id = 0;
  return id;
}

}  // namespace snowfabric
