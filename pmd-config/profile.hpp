// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/idle.hpp"
#include "pmd-config/capabilities.hpp"

namespace snowfabric {

enum class DeviceKind : std::uint8_t { kVdev, kPci };

/// Who decides the MTU of a port.
enum class MtuBy : std::uint8_t {
  kKernel,  ///< the kernel interface beneath the device; we only check that it is large enough
  kEthdev,  ///< rte_eth_dev_configure and rte_eth_dev_set_mtu
  kNone,    ///< nobody: the device carries what it is given
};

/// Ways to receive the group's frames, best first. A port tries its profile's preference, then each
/// that follows.
enum class MulticastFilter : std::uint8_t {
  kList,          ///< rte_eth_dev_set_mc_addr_list: the device passes our groups only
  kSocket,        ///< PACKET_ADD_MEMBERSHIP on the device's AF_PACKET socket: the kernel does it
  kAllMulticast,  ///< the device passes every group
  kPromiscuous,   ///< the device passes every frame
  kSoftware,      ///< nothing could be set: the engines drop what is not theirs
};
[[nodiscard]] std::string_view to_string(MulticastFilter filter) noexcept;

/// What one kind of device needs and cannot do. docs/operations.md, "Profiles", lists the keys; the
/// member names are the keys of the TOML file.
struct Profile {
  std::string name;
  std::string description;
  std::filesystem::path file;  ///< where it was read from; not a key

  DeviceKind device = DeviceKind::kVdev;
  std::vector<std::string> eal_args;  ///< with {iface}, {mtu}, {framesz}, {blocksz}, {role}
  unsigned hugepages_mb = 0;          ///< 0: runs with --no-huge

  std::uint16_t nb_rxd = 1024;
  std::uint16_t nb_txd = 1024;
  unsigned nb_mbufs = 8191;
  unsigned mbuf_room_bytes = 0;  ///< headroom included; 0: computed from the MTU

  MtuBy mtu_by = MtuBy::kEthdev;
  unsigned mtu = 1500;  ///< 0, with kKernel: what the interface has
  unsigned max_mtu = 9000;

  bool multi_segs = false;     ///< ask for RTE_ETH_TX_OFFLOAD_MULTI_SEGS where the device has it
  bool zero_copy = false;      ///< pages may be sent as external buffers
  bool returns_mbufs = true;   ///< false: the device keeps mbufs of its rings when closed
  bool rx_interrupts = false;  ///< wait for frames on the device's RX interrupt when idle
  MulticastFilter multicast = MulticastFilter::kList;
  unsigned link_wait_ms = 5000;  ///< 0: a port without link is opened too
  Capabilities capabilities =
      0;  ///< that the device needs after the start, to be closed at the end

  IdleConfig idle;  ///< keys idle, idle_pauses, idle_yields

  double rate_initial_gbps = 1.0;  ///< flow control starts here
  double rate_max_gbps = 10.0;     ///< and never exceeds this

  std::vector<std::string> cannot;  ///< sentences for people
};

/// Loads and checks a profile. Control path, before or after EAL init; does not use DPDK.
/// A name is looked up as NAME.toml in the directories of profile_dirs(); anything with a slash or
/// the ending .toml is a path. A profile with `base` takes every key it does not set from there.
/// @return ENOENT: no such profile; EINVAL: syntax, unknown key, wrong type, value out of range or
///         circular base, each with file:line; or the errno of reading the file
[[nodiscard]] Result<Profile> load_profile(std::string_view name_or_path);

struct ProfileInfo {
  std::string name;
  std::string description;  ///< or what is wrong with it
  std::filesystem::path file;
};
/// Every profile that load_profile() finds by name, sorted by name.
[[nodiscard]] std::vector<ProfileInfo> list_profiles();

/// Where profiles are looked for, first match wins: $SNOWFABRIC_PROFILE_DIR,
/// $XDG_CONFIG_HOME/snowfabric/profiles (or ~/.config/...), /etc/snowfabric/profiles, shipped ones.
[[nodiscard]] std::vector<std::filesystem::path> profile_dirs();

/// Frame bytes (Ethernet header included, FCS not) this project can put on a link of that MTU.
[[nodiscard]] std::size_t max_frame_bytes(unsigned mtu_bytes) noexcept;
/// Slot of an AF_PACKET ring that holds such a frame: a power of two, because the kernel hands out
/// blocks of 2^n pages and any other size wastes the rest.
[[nodiscard]] std::size_t ring_slot_bytes(unsigned mtu_bytes) noexcept;
/// Data room of one mbuf, headroom included.
[[nodiscard]] std::uint16_t mbuf_room_bytes(const Profile& profile, unsigned mtu_bytes) noexcept;

}  // namespace snowfabric
