// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "descriptor/qemu_stream.hpp"
#include "fabric/base/endian.hpp"

namespace snowfabric::qemu {

/// The bytes of a migration stream in their order. The first failure sticks: from then on every
/// number is 0 and ok() false, so a caller need not look after each.
class Input {
 public:
  explicit Input(const ByteSource& source)
      : source_{source}, buffer_{std::make_unique_for_overwrite<std::byte[]>(kBufferBytes)} {}

  [[nodiscard]] bool ok() const noexcept { return error_.errnum == 0; }
  /// Only if not ok().
  [[nodiscard]] const Error& error() const noexcept { return error_; }

  /// Records the failure, unless there is one. @return false
  bool refuse(int errnum, std::string_view why) {
    if (ok()) error_ = Error{errnum, fmt::format("migration stream, byte {}: {}", offset(), why)};
    return false;
  }

  /// The same with somebody else's error.
  bool refuse(Error error) {
    if (ok()) error_ = std::move(error);
    return false;
  }

  template <std::unsigned_integral T>
  T number() {
    std::array<std::byte, sizeof(T)> raw{};
    BigEndian<T> value{0};
    if (bytes(raw)) std::memcpy(&value, raw.data(), sizeof value);
    return value.host();
  }

  /// Fills `out`. @return false: it could not, and `out` is unspecified
  bool bytes(std::span<std::byte> out) {
    for (;;) {
      const std::size_t n = std::min(out.size(), end_ - begin_);
      if (n != 0) std::memcpy(out.data(), buffer_.get() + begin_, n);
      begin_ += n;
      out = out.subspan(n);
      if (out.empty()) return ok();
      if (!refill()) return refuse(EBADMSG, "truncated: the stream ended in the middle");
    }
  }

  /// A length byte and that many bytes.
  std::string name() {
    std::string text(number<std::uint8_t>(), '\0');
    if (!bytes(std::as_writable_bytes(std::span{text}))) text.clear();
    return text;
  }

  /// Appends everything up to the stream's end to `out`, which may grow to `max_bytes`.
  bool rest(std::vector<std::byte>& out, std::size_t max_bytes) {
    do {
      const auto piece = std::span{buffer_.get() + begin_, end_ - begin_};
      if (piece.size() > max_bytes - out.size())
        return refuse(EFBIG, fmt::format("more than {} bytes of device state", max_bytes));
      out.insert(out.end(), piece.begin(), piece.end());
      begin_ = end_;
    } while (refill());
    return ok();
  }

 private:
  /// Many pages: QEMU sends a page a call, and its vCPU waits when the socket is full.
  static constexpr std::size_t kBufferBytes = std::size_t{256} << 10U;

  [[nodiscard]] std::uint64_t offset() const noexcept { return nb_read_ - (end_ - begin_); }

  /// With an empty buffer only. @return false: the stream ended, or failed
  bool refill() {
    if (!ok()) return false;
    const auto n = source_(std::span{buffer_.get(), kBufferBytes});
    if (!n) {
      error_ = n.error();
      return false;
    }
    begin_ = 0;
    end_ = std::min(*n, kBufferBytes);
    nb_read_ += end_;
    return end_ != 0;
  }

  const ByteSource& source_;
  std::unique_ptr<std::byte[]> buffer_;
  std::size_t begin_ = 0;  // of what is read and not taken yet
  std::size_t end_ = 0;
  std::uint64_t nb_read_ = 0;
  Error error_{};  // errnum 0: none yet
};

}  // namespace snowfabric::qemu
