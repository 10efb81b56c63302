// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <span>

#include "fabric/base/result.hpp"

namespace snowfabric {

/// Our end of the socket on which QEMU sends its migration stream. A QEMU that sends nothing is
/// waited for, but not for ever. Control path.
class StreamChannel {
 public:
  /// @param socket    borrowed; gets a receive time-out
  /// @param patience  longest silence between two pieces
  /// @param stop      set by a signal; outlives this object
  StreamChannel(int socket, std::chrono::milliseconds patience,
                const std::atomic<bool>& stop) noexcept;

  /// Blocks until something comes.
  /// @return bytes, 0: the stream has ended; ETIMEDOUT; ECANCELED: stopped amid a silence of a
  ///         second; or what recv() reported
  [[nodiscard]] Result<std::size_t> receive(std::span<std::byte> out) const;

  /// Takes what comes, for nobody, until the stream has ended. @return as receive()
  [[nodiscard]] Result<void> hear_out() const;

 private:
  int socket_;
  std::chrono::milliseconds patience_;
  const std::atomic<bool>* stop_;
};

}  // namespace snowfabric
