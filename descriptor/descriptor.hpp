// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/secret_bytes.hpp"

/// The VM descriptor: everything a clone needs besides the pages of the image.
/// docs/descriptor-format.md is the specification of the file.
namespace snowfabric {

/// Where a RAM block of the VMM lies in the image (page space 0).
struct RamBlock {
  std::string name;              ///< as the VMM calls it; 1 .. 255 bytes, no control characters
  std::uint64_t first_page = 0;  ///< of the image
  std::uint64_t nb_pages = 0;    ///< not 0
  std::uint64_t used_bytes = 0;  ///< as the VMM said; 1 .. nb_pages * kPageSize
  bool operator==(const RamBlock&) const = default;
};

/// One array of pages that the memserver serves.
struct PageSpace {
  std::uint8_t space = 0;      ///< as in the frames of the fabric; 0 is guest memory
  std::uint64_t nb_pages = 0;  ///< not 0
  bool operator==(const PageSpace&) const = default;
};

/// What a section's bytes are. A type with kOptionalSection may be ignored by who does not know it.
enum class SectionType : std::uint32_t {
  kQemuConfig = 1,     ///< CONFIGURATION of the migration stream
  kQemuRamHeader = 2,  ///< the "ram" section's start, which lists the blocks
  kQemuDevices = 3,    ///< the device sections, from the first SECTION_FULL to before the EOF byte
  kXenContext = 4,     ///< the HVM save record of a Xen domain
  kXenDomain = 5,      ///< what else its clones need: message XenDomain of descriptor.proto
};
inline constexpr std::uint32_t kOptionalSection = 0x8000'0000;  ///< bit of SectionType

/// Opaque bytes of the VMM.
struct Section {
  SectionType type{};
  std::vector<std::byte> bytes;
  bool operator==(const Section&) const = default;
};

/// Bounds of a descriptor, for writer and reader alike.
/// @{
inline constexpr std::size_t kMaxDescriptorBodyBytes = std::size_t{64} << 20U;
inline constexpr std::uint64_t kMaxImagePages = 0xffff'ffff;  ///< all page spaces together
inline constexpr std::size_t kMaxSpaces = 16;
inline constexpr std::size_t kMaxRamBlocks = 1024;
inline constexpr std::size_t kMaxSections = 64;
inline constexpr std::size_t kMaxMachineArgs = 1024;
inline constexpr std::size_t kMaxMachineArgBytes =
    128 * 1024;  ///< with its NUL: Linux' MAX_ARG_STRLEN
inline constexpr std::size_t kMaxNameBytes = 255;
inline constexpr std::size_t kGroupKeyBytes = 32;
inline constexpr std::size_t kHashRootBytes = 32;
inline constexpr std::size_t kMaxPageRanges = std::size_t{1}
                                              << 22U;  ///< in each of the three lists
/// @}

/// What a clone is started from. A value: owns all it holds.
struct Descriptor {
  std::uint64_t image_id = 0;     ///< of the frozen image; not 0
  std::uint32_t epoch = 1;        ///< which freeze of the image
  std::vector<PageSpace> spaces;  ///< ascending; the first is space 0
  std::vector<RamBlock> blocks;   ///< ascending first_page, disjoint, names unique; may be empty
  std::vector<Section> sections;  ///< at most one of a type
  MacAddr group{};                ///< where the memserver multicasts; a multicast address
  MacAddr server{};               ///< of the memserver; unicast, all zero: unknown, ask by HELLO
  /// Of the frames between memserver and memtaps; empty: they go in the clear. Whoever reads it may
  /// read all of the guest's memory, and send pages for it.
  SecretBytes group_key;
  std::vector<std::byte> hash_root;  ///< of the hash tree, which is space 1; empty: there is none
  std::uint64_t frozen_at_ns = 0;    ///< wall clock of the freeze, UNIX time
  std::string parent_name;           ///< at most 255 bytes, no control characters
  std::array<std::uint8_t, 16> parent_uuid{};
  /// The parent's command line as it stands, program first. It names sockets and files of the
  /// parent too, which a clone must not use. No argument has a NUL byte.
  std::vector<std::string> machine_args;

  // The three lists name pages of space 0.
  std::vector<PageRange> zero_pages;  ///< all-zero pages; ascending, disjoint
  /// Pages the image does not hold, because they were free in the guest at the freeze: they read as
  /// zeros and are never asked for. Ascending, disjoint; may meet zero_pages.
  std::vector<PageRange> absent_pages;
  std::vector<PageRange> working_set;  ///< in the order earlier clones touched them; disjoint

  /// @return the section of that type, owned by the descriptor; nullptr: there is none
  [[nodiscard]] const Section* find(SectionType type) const noexcept;
  bool operator==(const Descriptor&) const = default;
};

/// What guests call an image when they come to memtap: its id and the epoch.
[[nodiscard]] std::string image_name(std::uint64_t image_id, std::uint32_t epoch);

/// @return the bytes of the file; EINVAL: the named field is outside the bounds above; EFBIG: the
///         whole is; ENOTSUP: a section of unknown type that is not optional; ENOMEM
[[nodiscard]] Result<SecretBytes> encode(const Descriptor& descriptor);

/// Survives any bytes, and allocates in proportion to them. What it returns keeps all the bounds
/// above. Fields that a later writer of the same version added are ignored, sections of unknown
/// optional types are kept.
/// @return EBADMSG: not a descriptor, truncated, corrupt, or the named field is outside its bounds;
///         ENOTSUP: a newer version, or an unknown section that is not optional; EFBIG: larger than
///         kMaxDescriptorBodyBytes; ENOMEM
[[nodiscard]] Result<Descriptor> decode(std::span<const std::byte> file);

/// Control path: blocks on the file, reads no more than a descriptor can have.
/// @return errno of open(2) or read(2); EINVAL: not a regular file; else as decode; the text names
///         `path`
[[nodiscard]] Result<Descriptor> read_descriptor(const std::string& path);

/// Replaces `path` atomically and durably: whoever opens it sees the old file or the whole new one.
/// After an error nothing has changed, unless it was the folder's fsync(2): then there is no file,
/// neither an old nor the new one. It is readable by its owner alone, because device state is guest
/// memory.
/// @return as encode; EINVAL: `path` is there and is not a regular file; errno of the failed call
[[nodiscard]] Result<void> write_descriptor(const Descriptor& descriptor, const std::string& path);

}  // namespace snowfabric
