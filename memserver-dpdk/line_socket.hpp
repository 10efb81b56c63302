// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>
#include <string>
#include <string_view>
#include <utility>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {

/// How long somebody may take over an answer: between two pieces of it, and for all of it.
struct Patience {
  std::chrono::milliseconds silence{2000};
  std::chrono::milliseconds whole{5000};
};

/// Lines to and from a unix socket, as long as patience lasts. Control path; blocks.
class LineSocket {
 public:
  static constexpr std::size_t kMaxLineBytes = 511;

  /// @param peer  who listens there, for errors: "the guest"
  /// @return as UnixAddress::of; or what the call reported
  static Result<LineSocket> connect(const std::string& path, std::string_view peer,
                                    const Patience& patience);

  /// @return EAGAIN: there is no room; or what the call reported
  Result<void> say(std::string_view line);

  /// Without its end. Valid until the next call.
  /// @return ETIMEDOUT; ECONNRESET: it was closed; EPROTO: a line without end
  Result<std::string_view> next();

 private:
  using Clock = std::chrono::steady_clock;
  LineSocket(UniqueFd socket, std::string peer, const Patience& patience)
      : socket_{std::move(socket)},
        peer_{std::move(peer)},
        patience_{patience},
        deadline_{Clock::now() + patience.whole} {}
  Result<void> receive();

  UniqueFd socket_;
  std::string peer_;
  Patience patience_;
  Clock::time_point deadline_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of what next() has not returned
};

/// What a stranger wrote, for a log: at most 200 characters.
[[nodiscard]] std::string printable(std::string_view text);

}  // namespace snowfabric
