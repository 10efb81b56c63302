// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/server_watch.hpp"

#include <cerrno>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace snowfabric {
namespace {

constexpr Nanos kWaitLog{std::chrono::seconds{3}};  // HELLO goes on ten times a second

/// How long a memserver that wrote a descriptor may scan before it answers: 5 s a GiB; 1.4 s were
/// measured beside a busy guest. 0 without a descriptor: such a memserver has scanned already.
/// With a hash tree it is written after the scan.
double scan_time_s(const TapImage& image) {
  return image.root ? 0 : static_cast<double>(image.nb_pages) * 20e-6;
}

}  // namespace

ServerWatch::ServerWatch(const TapOptions& options, const TapImage& image,
                         const ClientEngine& engine, std::string name)
    : options_{options}, image_{image}, engine_{engine}, name_{std::move(name)} {}

double ServerWatch::patience_s() const noexcept { return options_.give_up_s + scan_time_s(image_); }

/// Before the first answer. A memserver writes a descriptor first and then scans the memory.
bool ServerWatch::waits_for_welcome(Nanos now) {
  const ClientState state = engine_.state();
  if (engine_.refused()) return false;
  if (state != ClientState::kJoining && state != ClientState::kServerDead) return false;
  if (join_began_ == kNever) {
    join_began_ = now;
    next_wait_log_ = now + kWaitLog;
  }
  const std::chrono::duration<double> waited = now - join_began_;
  if (now >= next_wait_log_) {
    next_wait_log_ = now + kWaitLog;
    spdlog::warn("no answer from the memserver of {} for {:.0f} s; {}waiting up to {:.3g} s", name_,
                 waited.count(),
                 scan_time_s(image_) > 0 ? "it may be scanning the memory still; " : "",
                 patience_s());
  }
  return waited.count() < patience_s();
}

Result<void> ServerWatch::look(bool serves, Nanos now) {
  if (!serves && waits_for_welcome(now)) return {};
  if (std::exchange(was_refused_, engine_.refused()) != engine_.refused() && engine_.refused())
    spdlog::error("the memserver has no room for another client; raise its --max-clients");
  if (std::exchange(asks_siblings_, engine_.asks_siblings()) != engine_.asks_siblings())
    spdlog::warn(asks_siblings_ ? "the memserver is silent: asking the other hosts"
                                : "the memserver is back");
  const ClientState state = engine_.state();
  if (std::exchange(last_state_, state) == state) return {};
  switch (state) {
    case ClientState::kJoined:
      spdlog::info("joined {}: {} pages, server {}, MTU {}", name_, engine_.nb_pages(),
                   to_string(engine_.server()), engine_.server_mtu_bytes());
      break;
    case ClientState::kServerDead: return on_silence(serves);
    case ClientState::kMtuTooSmall:
      return fail(EMSGSIZE,
                  fmt::format("the memserver sends frames for MTU {}, this port has less; "
                              "raise the MTU here or start the memserver with --mtu",
                              engine_.server_mtu_bytes()));
    case ClientState::kJoining: break;
  }
  return {};
}

Result<void> ServerWatch::on_silence(bool serves) const {
  if (serves) {
    spdlog::error(
        "the memserver is silent for {} s: until it is back faults fail that no other host answers",
        options_.give_up_s);
    return {};
  }
  if (engine_.refused())
    return fail(ENOSPC, fmt::format("the memserver of {} has no room for another client; raise its "
                                    "--max-clients",
                                    name_));
  return fail(ETIMEDOUT, fmt::format("no memserver answered for {} on {} within {:.3g} s; is it "
                                     "running, with this image{}, on the same segment, and is the "
                                     "image no larger than --max-image-gib?",
                                     name_, options_.device, patience_s(),
                                     image_.root ? " and --hash-tree" : ""));
}

}  // namespace snowfabric
