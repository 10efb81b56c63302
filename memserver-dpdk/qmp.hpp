// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>
#include <sys/types.h>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// QEMU's control socket: one command, one answer. Control path; blocks, but never longer than its
/// time-out for a single read.
/// Source: docs/interop/qmp-spec.txt of QEMU.
class Qmp {
 public:
  using Json = nlohmann::json;

  /// Connects to a unix socket and leaves the negotiation behind.
  /// @return what connect() reported; ETIMEDOUT; EPROTO: no QMP server listens there
  static Result<Qmp> connect(const std::string& path,
                             std::chrono::milliseconds timeout = std::chrono::seconds{10});
  /// Goes on with the connection of a process that ended: what that is answered still is passed
  /// over.
  static Qmp adopt(UniqueFd socket);

  /// @param arguments  a JSON object, or null for none
  /// @param fd         to pass along (getfd), or -1; QEMU gets a copy
  /// @return EREMOTEIO with QEMU's own words; ETIMEDOUT; ECONNRESET: QEMU is gone; EPROTO
  Result<Json> execute(const std::string& command, Json arguments = nullptr, int fd = -1);

  /// Process that listens: QEMU's, unless something relays the socket.
  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// When QEMU last said that its VM stopped: wall clock, UNIX time; 0: never. What it says comes
  /// to light with the answer to a command.
  [[nodiscard]] std::uint64_t stopped_at_ns() const noexcept { return stopped_at_ns_; }
  /// To adopt it elsewhere.
  [[nodiscard]] int socket() const noexcept { return socket_.get(); }

 private:
  Qmp(UniqueFd socket, pid_t pid, std::string path)
      : socket_{std::move(socket)}, pid_{pid}, path_{std::move(path)} {}
  void note(const Json& event);
  Result<void> send(const Json& message, int fd);
  Result<Json> receive();
  Result<std::string> line();

  UniqueFd socket_;
  pid_t pid_;
  std::string path_;
  std::string buffer_;      // received, and not a whole line yet
  bool amid_line_ = false;  // somebody else has read how the first line begins
  unsigned nb_commands_ = 0;
  std::uint64_t stopped_at_ns_ = 0;
};

/// A member of what QEMU says; empty, or 0: it has none of that kind.
[[nodiscard]] std::string text_of(const Qmp::Json& object, const char* key);
[[nodiscard]] std::uint64_t number_of(const Qmp::Json& object, const char* key);

}  // namespace snowfabric
