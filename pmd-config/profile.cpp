// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/profile.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include "fabric/seal.hpp"
#include "fabric/wire.hpp"
#include "pmd-config/profile_keys.hpp"

namespace snowfabric {
namespace fs = std::filesystem;
namespace {

constexpr std::array<std::string_view, 5> kFilterNames{"list", "socket", "allmulticast",
                                                       "promiscuous", "software"};

bool is_path(std::string_view name) { return name.contains('/') || name.ends_with(".toml"); }

/// @param seen  files that are being loaded: a profile may override the shipped one of its name
Result<fs::path> find_profile(std::string_view name, const fs::path& beside,
                              const std::vector<fs::path>& seen) {
  if (is_path(name))  // an absolute name replaces `beside`
    return fs::absolute(beside / fs::path{name}).lexically_normal();
  std::set<std::string> known;
  for (const fs::path& dir : profile_dirs()) {
    fs::path file = fs::absolute(dir / fmt::format("{}.toml", name)).lexically_normal();
    std::error_code ignored;
    if (fs::is_regular_file(file, ignored) && std::ranges::find(seen, file) == seen.end())
      return file;
    for (const auto& entry : fs::directory_iterator{dir, ignored})
      if (entry.path().extension() == ".toml") known.insert(entry.path().stem());
  }
  return fail(ENOENT, fmt::format("no profile '{}': give a file, or one of {}", name,
                                  fmt::join(known, ", ")));
}

Result<toml::table> parse_file(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error))
    return fail(error ? error.value() : ENOENT, fmt::format("no profile file {}", file.string()));
  try {
    return toml::parse_file(file.string());
  } catch (const toml::parse_error& e) {
    return fail(EINVAL,
                fmt::format("{}:{}: {}", file.string(), e.source().begin.line, e.description()));
  }
}

Result<void> check_whole(const Profile& p) {
  const auto bad = [&](std::string what) {
    return fail(EINVAL, fmt::format("{}: {}", p.file.string(), what));
  };
  if (p.mtu == 0 && p.mtu_by != MtuBy::kKernel)
    return bad("mtu = 0 means the kernel's and needs mtu_by = \"kernel\"");
  if (p.mtu > p.max_mtu) return bad(fmt::format("mtu {} exceeds max_mtu {}", p.mtu, p.max_mtu));
  if (wire::fragments_for_mtu(p.mtu == 0 ? p.max_mtu : p.mtu) == 0)
    return bad(
        fmt::format("mtu {} is too small for a page in {} fragments", p.mtu, wire::kMaxFragments));
  if (p.rate_initial_gbps > p.rate_max_gbps)
    return bad(fmt::format("rate_initial_gbps {} exceeds rate_max_gbps {}", p.rate_initial_gbps,
                           p.rate_max_gbps));
  const unsigned least = p.nb_rxd + p.nb_txd + 64U;  // full rings and one burst each way
  if (p.nb_mbufs < least)
    return bad(
        fmt::format("nb_mbufs {} is less than nb_rxd + nb_txd + 64 = {}", p.nb_mbufs, least));
  return {};
}

Result<Profile> load(std::string_view name, const fs::path& beside, std::vector<fs::path>& seen) {
  const Result<fs::path> file = find_profile(name, beside, seen);
  if (!file) return std::unexpected(file.error());
  if (std::ranges::find(seen, *file) != seen.end())
    return fail(EINVAL, fmt::format("{}: `base` leads back to this file", file->string()));
  seen.push_back(*file);
  const Result<toml::table> table = parse_file(*file);
  if (!table) return std::unexpected(table.error());

  Profile profile;
  if (const toml::node* base = table->get("base"); base != nullptr) {
    if (!base->is_string())
      return fail(EINVAL, fmt::format("{}:{}: base: must be a string", file->string(),
                                      base->source().begin.line));
    Result<Profile> loaded = load(base->as_string()->get(), file->parent_path(), seen);
    if (!loaded) return loaded;
    profile = std::move(*loaded);
  }
  profile.file = *file;
  profile.name = file->stem();
  if (const auto applied = apply_keys(*table, profile); !applied)
    return std::unexpected(applied.error());
  return profile;
}

}  // namespace

std::string_view to_string(MulticastFilter filter) noexcept {
  return kFilterNames[static_cast<std::size_t>(filter)];
}

Result<Profile> load_profile(std::string_view name_or_path) {
  std::vector<fs::path> seen;
  Result<Profile> profile = load(name_or_path, {}, seen);
  if (!profile) return profile;
  if (const auto checked = check_whole(*profile); !checked) return std::unexpected(checked.error());
  return profile;
}

std::vector<fs::path> profile_dirs() {
  std::vector<fs::path> dirs;
  const auto env = [](const char* name) {
    const char* value = std::getenv(name);
    return fs::path{value != nullptr ? value : ""};
  };
  if (const fs::path own = env("SNOWFABRIC_PROFILE_DIR"); !own.empty()) dirs.push_back(own);
  fs::path config = env("XDG_CONFIG_HOME");
  if (config.empty() && !env("HOME").empty()) config = env("HOME") / ".config";
  if (!config.empty()) dirs.push_back(config / "snowfabric/profiles");
  dirs.emplace_back("/etc/snowfabric/profiles");
  dirs.emplace_back(SNOWFABRIC_SOURCE_PROFILES);
  dirs.emplace_back(SNOWFABRIC_INSTALLED_PROFILES);
  return dirs;
}

std::vector<ProfileInfo> list_profiles() {
  std::map<std::string, ProfileInfo> found;
  for (const fs::path& dir : profile_dirs()) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator{dir, ignored}) {
      const std::string name = entry.path().stem();
      if (entry.path().extension() != ".toml" || found.contains(name)) continue;
      const Result<Profile> profile = load_profile(name);
      found[name] = {name, profile ? profile->description : profile.error().what, entry.path()};
    }
  }
  std::vector<ProfileInfo> list;
  for (auto& [name, info] : found) list.push_back(std::move(info));
  return list;
}

std::size_t max_frame_bytes(unsigned mtu_bytes) noexcept {
  return std::min<std::size_t>(mtu_bytes + sizeof(wire::EthHdr), wire::kMaxSealedBytes);
}

std::size_t ring_slot_bytes(unsigned mtu_bytes) noexcept {
  constexpr std::size_t kVlanTag = 4;
  constexpr std::size_t kKernelHeader = 66;  // TPACKET2_HDRLEN + 16, aligned to 16, minus 14
  return std::bit_ceil(max_frame_bytes(mtu_bytes) + kVlanTag + kKernelHeader);
}

std::uint16_t mbuf_room_bytes(const Profile& profile, unsigned mtu_bytes) noexcept {
  constexpr std::size_t kHeadroom = 128;  // RTE_PKTMBUF_HEADROOM; eal.cpp asserts it
  constexpr std::size_t kLeast = 2048;    // several NICs take no smaller RX buffer
  if (profile.mbuf_room_bytes != 0) return static_cast<std::uint16_t>(profile.mbuf_room_bytes);
  std::size_t room = mtu_bytes + sizeof(wire::EthHdr) + 12;  // two VLAN tags and the FCS
  // net_af_packet wants room for a whole ring slot less its header, however short the frames
  if (profile.mtu_by == MtuBy::kKernel) room = ring_slot_bytes(mtu_bytes);
  room = (std::max(room, kLeast) + kHeadroom + 63) / 64 * 64;
  return static_cast<std::uint16_t>(std::min<std::size_t>(room, UINT16_MAX));
}

}  // namespace snowfabric
