// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"

/// What the kernel offers beneath a virtual device. The PMDs keep their sockets to themselves, but
/// this process owns them: /proc/self/fd shows them.
namespace snowfabric::kernel {

/// The AF_PACKET socket bound to the interface, which net_af_packet receives from; nullopt: none.
[[nodiscard]] std::optional<int> find_packet_socket(unsigned if_index);
/// The only AF_XDP socket of this process; nullopt: none or several.
[[nodiscard]] std::optional<int> find_xdp_socket();

/// Joins or leaves multicast groups on a packet socket; the kernel sets the NIC's filter, and
/// undoes it when the socket closes.
/// @{
[[nodiscard]] Result<void> join_groups(int packet_fd, unsigned if_index,
                                       std::span<const MacAddr> groups);
void leave_groups(int packet_fd, unsigned if_index, std::span<const MacAddr> groups) noexcept;
/// @}

/// Frames dropped since the last call, because the socket's ring was full.
[[nodiscard]] std::uint64_t take_packet_drops(int packet_fd) noexcept;
/// Frames dropped since the socket was opened, for whatever reason.
[[nodiscard]] std::uint64_t xdp_drops(int xdp_fd) noexcept;

/// MTU of an interface in this network namespace.
/// @return ENODEV: no such interface
[[nodiscard]] Result<unsigned> interface_mtu(const std::string& iface);

}  // namespace snowfabric::kernel
