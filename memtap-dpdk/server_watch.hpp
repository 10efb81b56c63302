// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string>

#include "fabric/base/result.hpp"
#include "fabric/client_engine.hpp"
#include "memtap-dpdk/options.hpp"

namespace snowfabric {

/// Says how it stands between memtap and its memserver, and when there is no use in waiting on.
class ServerWatch {
 public:
  /// @param name  of what is fetched, for people. All is borrowed but this
  ServerWatch(const TapOptions& options, const TapImage& image, const ClientEngine& engine,
              std::string name);

  /// @param serves  there may be guests, who are told by errors of their own if the server is
  /// silent
  /// @return ETIMEDOUT: no answer; ENOSPC: the server has no room for us; EMSGSIZE: its frames do
  ///         not fit our port
  [[nodiscard]] Result<void> look(bool serves, Nanos now);

 private:
  [[nodiscard]] bool waits_for_welcome(Nanos now);
  [[nodiscard]] Result<void> on_silence(bool serves) const;
  [[nodiscard]] double patience_s() const noexcept;

  const TapOptions& options_;
  const TapImage& image_;
  const ClientEngine& engine_;
  std::string name_;
  ClientState last_state_ = ClientState::kJoining;
  Nanos join_began_ = kNever, next_wait_log_ = kNever;
  bool was_refused_ = false;
  bool asks_siblings_ = false;
};

}  // namespace snowfabric
