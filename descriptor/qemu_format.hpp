// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "descriptor/qemu_stream.hpp"
#include "fabric/base/frame_number.hpp"

/// The numbers of QEMU's migration stream, for its reader and writer. docs/qemu-stream.md names
/// where QEMU defines them. All integers of the stream are big-endian.
namespace snowfabric::qemu {

inline constexpr std::uint32_t kMagic = 0x5145564d;  ///< "QEVM"
inline constexpr std::uint32_t kVersion = 3;

/// First byte of a section.
enum SectionByte : std::uint8_t {
  kEof = 0x00,
  kSectionStart = 0x01,
  kSectionPart = 0x02,
  kSectionEnd = 0x03,
  kSectionFull = 0x04,
  kSubsection = 0x05,
  kVmDescription = 0x06,
  kConfiguration = 0x07,
  kCommand = 0x08,
  kFooter = 0x7e,
};

/// Commands to the destination.
enum CommandNumber : std::uint16_t {
  kOpenReturnPath = 1,
  kPing = 2,
  kPostcopyAdvise = 3,
  kPostcopyListen = 4,
  kPostcopyRun = 5,
  kRamDiscard = 6,
  kPackaged = 7,
  kPostcopyResume = 9,
  kSendReceived = 10,  ///< QEMU: MIG_CMD_RECV_BITMAP
};

/// Low bits of a page's address in the ram section.
enum RamFlag : std::uint64_t {
  kRamZero = 0x02,
  kRamMemSize = 0x04,
  kRamPage = 0x08,
  kRamEos = 0x10,
  kRamContinue = 0x20,
  kRamXbzrle = 0x40,
  kRamHook = 0x80,
  kRamCompressed = 0x100,
};
inline constexpr std::uint64_t kRamFlags = kPageSize - 1;

/// Messages from the destination.
enum ReturnType : std::uint16_t {
  kShutMessage = 1,
  kPongMessage = 2,
  kReqPagesNamed = 3,  ///< QEMU: MIG_RP_MSG_REQ_PAGES_ID
  kReqPages = 4,       ///< in the block named last
  kReceivedBitmap = 5,
  kResumeAckMessage = 6,
};
inline constexpr std::uint64_t kReceivedMark = 0x0123456789abcdef;  ///< behind each bitmap

inline constexpr std::string_view kRamName = "ram";

/// A block as the stream lists it.
struct StreamBlock {
  std::string name;
  std::uint64_t used_bytes = 0;  ///< a multiple of kPageSize, not 0
};

/// Where the blocks lie in the image: the largest first (of several, the first), the others behind
/// it in the stream's order.
[[nodiscard]] std::vector<RamBlock> lay_out(std::span<const StreamBlock> blocks);

/// The ram section's start, which lists the blocks: from its type byte to its footer.
void put_ram_header(std::vector<std::byte>& out, const State& state);

}  // namespace snowfabric::qemu
