// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/eal_args.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>

#include <fmt/format.h>

namespace snowfabric {
namespace {

using Args = std::vector<std::string>;

bool has_any(const Args& args, std::initializer_list<std::string_view> options) {
  return std::ranges::any_of(options, [&](auto option) { return has_option(args, option); });
}

Result<std::string> value_of(std::string_view word, const EalConfig& config) {
  const std::size_t slot = ring_slot_bytes(config.mtu);
  if (word == "mtu") return fmt::format("{}", config.mtu);
  if (word == "framesz") return fmt::format("{}", slot);
  if (word == "blocksz") return fmt::format("{}", std::max<std::size_t>(slot, 4096));
  if (word == "role") return config.role;
  if (word != "iface")
    return fail(EINVAL,
                fmt::format("{}: eal_args: unknown placeholder {{{}}}; there are {{iface}}, "
                            "{{mtu}}, {{framesz}}, {{blocksz}}, {{role}}",
                            config.profile.file.string(), word));
  if (config.iface.empty())
    return fail(EINVAL,
                fmt::format("profile {} needs a device: --device NAME", config.profile.name));
  // it becomes part of a device string, where these separate arguments
  if (config.iface.find_first_of(", \t\n") != std::string::npos)
    return fail(EINVAL, fmt::format("--device '{}' contains a comma or a blank", config.iface));
  return config.iface;
}

Result<std::string> substitute(std::string_view text, const EalConfig& config) {
  std::string out;
  while (!text.empty()) {
    const std::size_t open = text.find('{');
    const std::size_t close = text.find('}', open == std::string_view::npos ? 0 : open);
    out += text.substr(0, open);
    if (open == std::string_view::npos) break;
    if (close == std::string_view::npos)
      return fail(EINVAL, fmt::format("{}: eal_args: '{{' without '}}' in {}",
                                      config.profile.file.string(), text));
    const auto value = value_of(text.substr(open + 1, close - open - 1), config);
    if (!value) return value;
    out += *value;
    text.remove_prefix(close + 1);
  }
  return out;
}

/// The profile's arguments, less its devices when the user named devices.
Result<void> add_profile_args(const EalConfig& config, Args& out) {
  const bool own_devices = has_any(config.extra_args, {"--vdev", "-a", "--allow"});
  for (const std::string& text : config.profile.eal_args) {
    const bool device = has_any({text}, {"--vdev", "-a", "--allow"});
    if (device && own_devices) continue;
    const auto arg = substitute(text, config);
    if (!arg) return std::unexpected(arg.error());
    out.push_back(*arg);
  }
  if (config.profile.device == DeviceKind::kVdev &&
      !has_any(config.extra_args, {"--no-pci", "-a", "--allow", "-b", "--block"}))
    out.emplace_back("--no-pci");
  return {};
}

void add_memory_args(const EalConfig& config, Args& out) {
  const Args& user = config.extra_args;
  const bool own_mode =
      has_any(user, {"--no-huge", "--in-memory", "--huge-dir", "--huge-unlink", "--legacy-mem",
                     "--single-file-segments", "--socket-mem", "--numa-mem"});
  const bool own_amount = has_any(user, {"-m", "--socket-mem", "--numa-mem"});
  // --in-memory leaves no files behind, but EAL refuses it together with --no-huge
  const bool no_huge = own_mode ? has_option(user, "--no-huge") : config.profile.hugepages_mb == 0;
  if (!own_mode) out.emplace_back(no_huge ? "--no-huge" : "--in-memory");
  if (no_huge && !own_amount) {
    out.emplace_back("-m");
    out.push_back(
        fmt::format("{}", no_huge_mb(config.profile, config.mtu) + config.extra_memory_mb));
  }
}

}  // namespace

bool has_option(const Args& args, std::string_view option) {
  return std::ranges::any_of(args, [&](std::string_view arg) {
    if (!arg.starts_with(option)) return false;
    const std::string_view rest = arg.substr(option.size());
    return rest.empty() || !option.starts_with("--") || rest.front() == '=';
  });
}

std::string default_file_prefix() { return fmt::format("snowfabric-{}", getpid()); }

std::string default_lcores(IdleStrategy strategy) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return "0";
  std::string cpus;
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    cpus += fmt::format("{}{}", cpus.empty() ? "" : ",", cpu);
    if (strategy == IdleStrategy::kBusy) break;
  }
  return fmt::format("0@({})", cpus);
}

unsigned no_huge_mb(const Profile& profile, unsigned mtu_bytes) noexcept {
  constexpr std::size_t kSmallPage = 4096;
  constexpr std::size_t kBaseMb = 64;
  constexpr std::size_t kObjectHeader = 64 + 128;  // mempool's and mbuf's
  std::size_t object = mbuf_room_bytes(profile, mtu_bytes) + kObjectHeader;
  // without hugepages an object that fits into a page is not laid across two
  if (object <= kSmallPage) object = kSmallPage / (kSmallPage / object);
  return static_cast<unsigned>(kBaseMb + profile.nb_mbufs * object * 9 / 8 / (1U << 20U));
}

Result<Args> eal_args(const EalConfig& config) {
  const Args& user = config.extra_args;
  Args out{config.program};
  if (!has_any(user, {"--lcores", "-l", "-c"}))
    out.push_back("--lcores=" + (config.lcores.empty()
                                     ? default_lcores(config.profile.idle.strategy)
                                     : config.lcores));
  if (!has_option(user, "--file-prefix"))
    out.push_back("--file-prefix=" +
                  (config.file_prefix.empty() ? default_file_prefix() : config.file_prefix));
  if (!has_option(user, "--log-level")) out.emplace_back("--log-level=error");
  add_memory_args(config, out);
  if (const auto added = add_profile_args(config, out); !added)
    return std::unexpected(added.error());
  out.insert(out.end(), user.begin(), user.end());
  return out;
}

}  // namespace snowfabric
