// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/completions.hpp"

#include <algorithm>
#include <chrono>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <sys/socket.h>

namespace snowfabric {
namespace {

/// To one who may have gone, or who does not read: then it has the next line.
void say(const UniqueFd& requester, std::string_view line) {
  send(requester.get(), line.data(), line.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

void Completions::begin(CompletionRequest request, const Guests& guests, Host& host) {
  // Of a process with two the first is the one that gets the RAM: QemuLoader comes after it.
  const auto found = std::ranges::find(guests, request.guest, &ProcessGuest::pid);
  if (found == guests.end()) return say(request.requester, "{\"unknown\": true}\n");
  ProcessGuest& guest = **found;
  host.complete(guest);
  const auto asked = std::ranges::find(completions_, &guest, &Completion::guest);
  if (asked == completions_.end())
    return completions_.push_back({&guest, std::move(request.requester)});
  say(asked->requester, "{\"error\": \"somebody else has asked for the same\"}\n");
  asked->requester = std::move(request.requester);
}

void Completions::step(const Host& host, bool server_lives, Nanos now) {
  if (completions_.empty()) return;
  const bool reports = now >= next_report_;
  if (reports) next_report_ = now + std::chrono::seconds{1};
  std::erase_if(completions_, [&](const Completion& completion) {
    const auto& [guest, requester] = completion;
    if (!host.completing(*guest)) {
      guest->release();
    } else if (!server_lives) {
      say(requester, "{\"error\": \"the memserver that has the rest of its memory is silent\"}\n");
      return true;
    } else if (reports) {
      say(requester, fmt::format("{{\"missing\": {}}}\n", guest->nb_missing()));
    }
    return false;
  });
}

void Completions::on_gone(const ProcessGuest& guest) {
  const std::size_t nb_left = guest.nb_missing();
  std::erase_if(completions_, [&](const Completion& completion) {
    if (completion.guest != &guest) return false;
    if (nb_left == 0) {
      say(completion.requester, "{\"complete\": true}\n");
    } else {
      say(completion.requester,
          fmt::format(
              "{{\"error\": \"it ended, or let go of its memtap, with {} pages missing\"}}\n",
              nb_left));
    }
    return true;
  });
}

}  // namespace snowfabric
