// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/eal.hpp"

#include <fcntl.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace snowfabric {
namespace fs = std::filesystem;
namespace {

/// A primary process holds a lock on its config file; with --in-memory there is none to lock.
bool config_locked(const fs::path& dir) {
  const int fd = open((dir / "config").c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return false;
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const bool locked = fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
  close(fd);
  return locked;
}

/// Another process may have been started with the same prefix.
void remove_unless_locked(const fs::path& dir) noexcept {
  std::error_code ignored;
  if (!dir.empty() && !config_locked(dir)) fs::remove_all(dir, ignored);
}

/// A default prefix of ours whose process is gone.
bool abandoned(const fs::path& dir) {
  const std::string name = dir.filename();
  const std::string_view start = "snowfabric-";
  pid_t pid = 0;
  if (!name.starts_with(start)) return false;
  const auto [end, error] =
      std::from_chars(name.data() + start.size(), name.data() + name.size(), pid);
  if (error != std::errc{} || end != name.data() + name.size() || pid <= 0) return false;
  return kill(pid, 0) != 0 && errno == ESRCH && !config_locked(dir);
}

void remove_abandoned(const fs::path& parent) {
  std::error_code ignored;
  std::vector<fs::path> dirs;
  for (const auto& entry : fs::directory_iterator{parent, ignored})
    if (abandoned(entry.path())) dirs.push_back(entry.path());
  for (const fs::path& dir : dirs) fs::remove_all(dir, ignored);
}

}  // namespace

Eal::Eal(fs::path runtime_dir, bool owns_dir) noexcept
    : runtime_dir_{std::move(runtime_dir)}, owns_dir_{owns_dir}, live_{true} {}

Eal::Eal(Eal&& other) noexcept
    : runtime_dir_{std::move(other.runtime_dir_)},
      owns_dir_{other.owns_dir_},
      live_{std::exchange(other.live_, false)} {}

Eal& Eal::operator=(Eal&& other) noexcept {
  std::swap(runtime_dir_, other.runtime_dir_);
  std::swap(owns_dir_, other.owns_dir_);
  std::swap(live_, other.live_);
  return *this;
}

Eal::~Eal() {
  if (live_) clean_up();
}

void Eal::clean_up() noexcept {
  rte_eal_cleanup();
  if (owns_dir_) remove_unless_locked(runtime_dir_);
}

Result<Eal> Eal::init(const EalConfig& config) {
  auto args = eal_args(config);
  if (!args) return std::unexpected(args.error());
  const std::string shown = fmt::format("{}", fmt::join(*args, " "));
  std::vector<char*> argv;
  for (std::string& arg : *args) argv.push_back(arg.data());
  const auto argc = static_cast<int>(argv.size());
  argv.push_back(nullptr);
  const bool ours = !has_option(config.extra_args, "--file-prefix");
  const int used = rte_eal_init(argc, argv.data());
  const int error = rte_errno;
  if (used < 0 && error == EALREADY) return fail(error, "rte_eal_init: already called");
  Eal eal{rte_eal_get_runtime_dir(), ours};
  if (used < 0) {
    // EAL cannot be cleaned up after a failed start; only its directory can
    eal.live_ = false;
    if (ours) remove_unless_locked(eal.runtime_dir_);
    return fail(error > 0 ? error : EINVAL,
                fmt::format("rte_eal_init({}): see above, or repeat with `-- --log-level=debug`; "
                            "`tools/doctor --profile {}` checks this host",
                            shown, config.profile.name));
  }
  if (used + 1 != argc)  // rte_eal_init returns the index of the last argument it took
    return fail(EINVAL,
                fmt::format("'{}' is no EAL argument", argv[static_cast<size_t>(used) + 1]));
  remove_abandoned(eal.runtime_dir_.parent_path());
  return eal;
}

}  // namespace snowfabric
