// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "descriptor/descriptor.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"

/// QEMU's migration stream, in both directions and without I/O. docs/qemu-stream.md says which
/// streams these are; the text of every error names the stream's byte it was found at.
namespace snowfabric::qemu {

/// Bounds of a stream that is read.
/// @{
inline constexpr std::size_t kMaxBlocks = 256;
inline constexpr std::size_t kMaxConfigBytes = 4096;
inline constexpr std::size_t kMaxDeviceBytes = std::size_t{64} << 20U;  ///< with QEMU's JSON
/// @}

/// What a stream says besides the bytes of memory. A value.
struct State {
  std::vector<std::byte>
      config;  ///< CONFIGURATION section, without the capabilities it was sent by
  std::uint32_t ram_section_id = 0;
  std::uint32_t ram_version = 0;
  std::vector<RamBlock> blocks;    ///< where they lie in the image; ascending, no gaps
  std::vector<std::byte> devices;  ///< from the first SECTION_FULL to before the EOF byte
  bool operator==(const State&) const = default;
};

/// Pages of all blocks together, which are the pages of the image.
[[nodiscard]] std::uint64_t nb_pages(std::span<const RamBlock> blocks) noexcept;

/// The state's sections of a descriptor: kQemuConfig, kQemuRamHeader, kQemuDevices.
[[nodiscard]] std::vector<Section> to_sections(const State& state);

/// The state that a descriptor's sections hold.
/// @return EINVAL: the descriptor is not one of a QEMU parent, or its blocks are not those of its
///         ram header; else as read_stream
[[nodiscard]] Result<State> state_of(const Descriptor& descriptor);

// --- Parent: reading its stream ------------------------------------------------------------------

/// Reads up to `out.size()` bytes (not 0) to its front, as read(2); blocks.
/// @return bytes read; 0: the stream ended
using ByteSource = std::function<Result<std::size_t>(std::span<std::byte> out)>;

/// Says where the memory of each block goes: `blocks[i].nb_pages` pages that read as zeros until
/// they are written here, and stay until read_stream() returned. Empty for a block that is shared
/// with the parent, whose pages do not come by the stream. Called once, before the first page.
/// @return as many spans as blocks
using PlaceBlocks =
    std::function<Result<std::vector<std::span<std::byte>>>(std::span<const RamBlock> blocks)>;

/// Takes in what QEMU's `migrate` sends with background-snapshot, with x-ignore-shared, or with
/// neither while the VM is stopped. A page that comes again overwrites; all pages of every block
/// that is not shared must have come by the end. Allocates at most the bounds above and one bit a
/// page.
/// @param max_pages  of all blocks together; at most kMaxImagePages
/// @return EBADMSG: malformed, truncated, or pages are missing; EFBIG: a bound is exceeded;
///         ENOTSUP: sent with a capability that must be off, which the text names; ENOMEM; errors
///         of `source` and `place` as they are
[[nodiscard]] Result<State> read_stream(const ByteSource& source, const PlaceBlocks& place,
                                        std::uint64_t max_pages);

// --- Clone: being the source of its migration ----------------------------------------------------

/// The bytes of one page, borrowed until the next call. Empty: the page is all zero.
using PageBytes = std::function<std::span<const std::byte>(Gfn page)>;

inline constexpr std::size_t kMaxPageHeaderBytes = 8 + 1 + kMaxNameBytes + 1;

/// Frames pages for one clone, and remembers the block last named to it. The blocks must be those
/// of the preamble and outlive the writer. One thread.
class PageWriter {
 public:
  /// @param blocks  ascending, disjoint; borrowed
  explicit PageWriter(std::span<const RamBlock> blocks) noexcept : blocks_{blocks} {}

  /// What goes before the page's bytes; for a zero page, all there is of it. To a clone in postcopy
  /// a page may be sent only once: QEMU fails on the second.
  /// @return bytes written to the front of `out`; 0: no block has this page
  [[nodiscard]] std::size_t header(std::span<std::byte, kMaxPageHeaderBytes> out, Gfn page,
                                   bool zero) noexcept;

  /// Appends the whole page.
  /// @param bytes  kPageSize bytes; empty: the page is all zero
  /// @return false: no block has this page, nothing appended
  [[nodiscard]] bool append(std::vector<std::byte>& out, Gfn page,
                            std::span<const std::byte> bytes);

  /// The next page names its block again, as a new connection needs it.
  void reset() noexcept { last_ = nullptr; }

 private:
  std::span<const RamBlock> blocks_;
  const RamBlock* last_ = nullptr;
};

/// All that a clone started with `-incoming` and `-global migration.x-postcopy-ram=on` needs to
/// run, up to the open section in which pages follow as they are asked for (PageWriter). Pages are
/// asked for before the clone runs: answer as soon as this is sent.
/// @param vital  pages the clone gets before it starts, each once; sent as any other page, so they
///               must not be sent again
/// @param bytes  of the vital pages; not called without any
/// @return EINVAL: no block, or no block has a vital page; EFBIG: more than QEMU takes; ENOMEM
[[nodiscard]] Result<std::vector<std::byte>> postcopy_preamble(const State& state,
                                                               std::span<const Gfn> vital = {},
                                                               const PageBytes& bytes = {});

/// Ends the open section and the migration, after the last page of all.
[[nodiscard]] std::vector<std::byte> postcopy_end(const State& state);

/// The recovery of a clone in "postcopy-paused", on the new connection of `migrate-recover`.
/// Pages that were under way when the old one broke are lost, so first ask what the clone has; when
/// kReceivedEnd came for each block, resume, and send what it lacks and asks for.
/// @{
[[nodiscard]] std::vector<std::byte> ask_received(const State& state);
[[nodiscard]] std::vector<std::byte> postcopy_resume(const State& state);
/// @}

/// A stream for a clone whose memory comes from elsewhere (userfaultfd, or a mapped image): lists
/// all blocks and carries the pages of all but one.
/// @param left_out  index in state.blocks of the block that carries nothing; 0 is the largest
/// @return EINVAL: no such block, or `bytes` gave neither a page nor nothing; ENOMEM
[[nodiscard]] Result<std::vector<std::byte>> precopy_stream(const State& state,
                                                            std::size_t left_out,
                                                            const PageBytes& bytes);

// --- Clone: what it answers ----------------------------------------------------------------------

/// A message on the return path.
struct Message {
  enum class Kind : std::uint8_t {
    kPages,        ///< the clone waits for `pages`
    kPong,         ///< `value` of the ping
    kShut,         ///< the clone ends the return path; `value` 0: all pages came
    kResumeAck,    ///< the clone goes on after a recovery
    kReceived,     ///< bit i of `value`: the clone has page `pages.first` + i; at most 64 pages
    kReceivedEnd,  ///< kReceived came for all of `pages`, which are one block
  };
  Kind kind{};
  PageRange pages{};
  std::uint64_t value = 0;
};

/// Parses the return path, however its bytes are cut. QEMU is a guest to us: nothing it sends can
/// do more than end its own connection. Allocates nothing. One thread.
class ReturnPath {
 public:
  /// @param blocks  as of PageWriter; borrowed
  explicit ReturnPath(std::span<const RamBlock> blocks) noexcept : blocks_{blocks} {}

  /// Consumes bytes from the front of `in` up to the end of the first message.
  /// @return the message; nullopt: all of `in` is consumed and the message goes on. EBADMSG:
  ///         malformed, pages outside of every block, or nothing that was asked for; the connection
  ///         is of no use any more
  [[nodiscard]] Result<std::optional<Message>> take(std::span<const std::byte>& in);

  /// Call before the bytes of a new connection.
  void reset() noexcept { *this = ReturnPath{blocks_}; }

 private:
  enum class Expect : std::uint8_t { kMessage, kBitmapBytes, kBitmapWord, kBitmapMark };
  [[nodiscard]] bool fill(std::span<const std::byte>& in, std::size_t nb_bytes) noexcept;
  [[nodiscard]] Result<std::optional<Message>> parse_message();
  [[nodiscard]] Result<std::optional<Message>> parse_pages();
  [[nodiscard]] Result<std::optional<Message>> parse_bitmap_name();
  [[nodiscard]] Result<std::optional<Message>> parse_bitmap_item();
  [[nodiscard]] const RamBlock* find(std::span<const std::byte> name) const noexcept;
  [[nodiscard]] std::unexpected<Error> bad(std::string_view why) const;

  static constexpr std::size_t kHeaderBytes = 4;
  static constexpr std::size_t kMostBytes = kHeaderBytes + 12 + 1 + kMaxNameBytes;

  std::span<const RamBlock> blocks_;
  const RamBlock* asked_ = nullptr;   ///< block of the last request that named one
  const RamBlock* bitmap_ = nullptr;  ///< block whose bitmap comes
  std::uint64_t bitmap_page_ = 0;     ///< next page of it, from the block's start
  std::uint64_t offset_ = 0;          ///< bytes of whole items so far
  std::array<std::byte, kMostBytes> item_{};
  std::size_t nb_item_ = 0;  ///< bytes of it that came
  Expect expect_ = Expect::kMessage;
};

}  // namespace snowfabric::qemu
