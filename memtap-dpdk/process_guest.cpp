// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/process_guest.hpp"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>

#include <sys/syscall.h>

namespace snowfabric {

ProcessGuest::ProcessGuest(std::uint32_t id, Peer peer, PresenceFile presence)
    : presence_{presence.view()},
      id_{id},
      peer_{std::move(peer)},
      file_{std::move(presence)},
      reported_((presence_.nb_pages() + 63) / 64) {}

bool ProcessGuest::kill() noexcept {
  if (syscall(SYS_pidfd_send_signal, pidfd(), SIGKILL, nullptr, 0) != 0) {
    if (errno == ESRCH) mark_gone();
    return false;
  }
  counters_.kills.add(1);
  return true;
}

void ProcessGuest::set_trouble(std::string_view why) noexcept {
  counters_.unsupported_events.add(1);
  if (trouble_.empty()) trouble_ = why;
}

}  // namespace snowfabric
