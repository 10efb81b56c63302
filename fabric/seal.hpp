// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "fabric/base/endian.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/secret_bytes.hpp"
#include "fabric/wire.hpp"

/// Frames that only the holders of a group's key can read, and make. The engines know nothing of
/// it: a frame is sealed behind them and opened before them. docs/wire-format.md, "Sealed frames".
namespace snowfabric {

namespace wire {

inline constexpr std::uint16_t kSealedMagic = 0x5358;  ///< "SX"
inline constexpr std::uint8_t kSealedVersion = 1;
using Session = std::array<std::byte, 16>;

/// Behind the Ethernet header of a sealed frame; both are authenticated, not encrypted.
struct SealHeader {
  Be16 magic;             //  0  kSealedMagic
  std::uint8_t version;   //  2  kSealedVersion
  std::uint8_t reserved;  //  3
  Be16 length;            //  4  bytes of ciphertext behind this header; then comes the tag
  Be16 reserved2;         //  6
  Session session;        //  8  of the sender, drawn when it starts
  Be64 counter;           // 24  of its frames, from 1
};
static_assert(sizeof(SealHeader) == 32 && alignof(SealHeader) == 1);

inline constexpr std::size_t kTagBytes = 16;
/// What sealing adds to a frame: a port's MTU has to have room for it.
inline constexpr std::size_t kSealBytes = sizeof(SealHeader) + kTagBytes;
inline constexpr std::size_t kMaxSealedBytes = kMaxFrameBytes + kSealBytes;

}  // namespace wire

/// The secret of a group: who has it reads and makes all of the group's frames. Wiped at the end.
class GroupKey {
 public:
  static constexpr std::size_t kBytes = 32;
  using Bytes = std::array<std::byte, kBytes>;

  explicit GroupKey(std::span<const std::byte, kBytes> bytes) noexcept {
    std::ranges::copy(bytes, bytes_.begin());
  }
  /// A file of 64 hexadecimal digits, as `openssl rand -hex 32` prints them. Control path.
  /// @return errno of open(2) or read(2); EACCES: others than its owner may read it; EBADMSG: it
  ///         is something else
  [[nodiscard]] static Result<GroupKey> read(const std::string& path);
  GroupKey(const GroupKey&) noexcept = default;
  GroupKey& operator=(const GroupKey&) noexcept = default;
  ~GroupKey();

  [[nodiscard]] const Bytes& bytes() const noexcept { return bytes_; }

 private:
  Bytes bytes_;
};

/// Replays are told apart in the last so many frames of a session; older ones are refused unseen.
/// Source: RFC 6479, whose ring of words this is.
class ReplayWindow {
 public:
  static constexpr std::uint64_t kFrames = 1024 - 64;
  /// @return whether it is none of those before, which it is from now on
  [[nodiscard]] bool accept(std::uint64_t counter) noexcept;

 private:
  static constexpr std::uint64_t kWords = 16;
  std::array<std::uint64_t, kWords> seen_{};
  std::uint64_t highest_ = 0;
};

/// Room for what was sealed.
struct OpenBuffer : std::array<std::byte, wire::kMaxFrameBytes> {
  ~OpenBuffer() { wipe(*this); }
};

/// Seals and opens the frames of one process, by AES-256-GCM with a key for each sender: that is
/// HMAC-SHA256 of its session under the group's key. A session is 128 random bits, so that no
/// restart meets a key again, and the nonce is a frame's counter. One thread.
class Seal {
 public:
  /// @param max_senders  to remember at once; then the one that was silent longest is forgotten. It
  ///                     is a stranger again: its frames of before are taken once more
  /// @pre max_senders is not 0
  /// @return ENOMEM; errno of getrandom(2); ENOTSUP: no AES instructions
  [[nodiscard]] static Result<std::unique_ptr<Seal>> make(const GroupKey& key,
                                                          std::size_t max_senders);
  /// With a session that was not drawn: for tests alone, as two senders of one session would seal
  /// different frames by the same key and nonce.
  [[nodiscard]] static Result<std::unique_ptr<Seal>> make_of_session(const GroupKey& key,
                                                                     std::size_t max_senders,
                                                                     const wire::Session& session);
  Seal(const Seal&) = delete;
  Seal& operator=(const Seal&) = delete;
  ~Seal();

  /// Where a frame to be sealed has to begin in its buffer.
  static constexpr std::size_t kHeadroom = sizeof(wire::SealHeader);
  /// @param buffer       holds the frame from kHeadroom on, and has wire::kTagBytes behind it; the
  ///                     sealed frame begins at its front
  /// @param frame_bytes  of the frame, with its Ethernet header
  /// @return of the sealed frame
  [[nodiscard]] std::size_t seal(std::span<std::byte> buffer, std::size_t frame_bytes) noexcept;

  /// @param eth      of the frame
  /// @param payload  what is behind it
  /// @param out      gets what was sealed
  /// @param inner    becomes the part of `out` that was written
  /// @return kNone, or why the frame is to be dropped: kUnsealed, kTruncated, kBadVersion,
  ///         kBadLength, kBadSeal, kReplayed
  [[nodiscard]] wire::Drop open(const wire::EthHdr& eth, std::span<const std::byte> payload,
                                OpenBuffer& out, std::span<const std::byte>& inner) noexcept;
  /// The frame opened last was one to act on: its sender is remembered, if it was unknown. Others
  /// are not, or whoever is heard by all would fill the table. Until then a replay of a stranger's
  /// frame is not told from it.
  void remember_sender() noexcept;

  [[nodiscard]] const wire::Session& session() const noexcept;

 private:
  struct Impl;
  explicit Seal(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace snowfabric
