// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>

#include "sim/judge.hpp"
#include "sim/lab.hpp"

/// What must hold of a party at any time. Cheap enough to be looked at again and again.
namespace snowfabric::sim {

/// Every frame from it and to it is received, lost for a reason that is counted, or under way.
void check_frames(const Party& party, Judge& judge);

/// The server's table has the members that there are, and room for all.
/// @param most_clients  processes that have said HELLO, at most, and the table's capacity
void check_bounds(const ServerParty& server, std::size_t most_clients, Judge& judge);

/// What a memtap has of requests, guests and records fits its tables.
void check_bounds(const Memtap& memtap, Judge& judge);

/// Nobody waits any more, and so nothing is left to ask for, to install, or to send.
void check_quiet(const Memtap& memtap, Judge& judge);

}  // namespace snowfabric::sim
