// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <memory>
#include <vector>

#include "fabric/base/time.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/process_guest.hpp"

namespace snowfabric {

/// Clones that get the rest of their memory because somebody asked for it: a memserver that is to
/// freeze one. Tells them how far it is, in lines of JSON (docs/operations.md, A clone as parent).
/// One thread: the host's.
class Completions {
 public:
  using Guests = std::vector<std::unique_ptr<ProcessGuest>>;

  /// If the requester hangs up the guest is completed all the same. A guest has one: whoever asks
  /// again takes the place of the one before, who may have hung up long ago, and is told so.
  void begin(CompletionRequest request, const Guests& guests, Host& host);

  /// Now and then. Lets go of guests that have all their memory, and once a second says what is
  /// missing.
  /// @param server_lives  else the requests end with an error
  void step(const Host& host, bool server_lives, Nanos now);

  /// Before the guest is destroyed.
  void on_gone(const ProcessGuest& guest);

 private:
  struct Completion {
    ProcessGuest* guest;
    UniqueFd requester;
  };
  std::vector<Completion> completions_;
  Nanos next_report_{0};
};

}  // namespace snowfabric
