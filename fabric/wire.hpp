// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "fabric/base/endian.hpp"
#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"

/// The frames of the page fabric. docs/wire-format.md is the specification; the structs here repeat
/// it and the asserts hold them to it.
namespace snowfabric::wire {

inline constexpr std::uint16_t kEtherType = 0x88B5;  ///< IEEE 802 local experimental 1
inline constexpr std::uint16_t kMagic = 0x5346;      ///< "SF"
inline constexpr std::uint8_t kVersion = 1;

enum class FrameType : std::uint8_t {
  kHello = 1,    ///< client: here I am
  kWelcome = 2,  ///< server: geometry and incarnation
  kRequest = 3,  ///< client: pages wanted and a rate report
  kPage = 4,     ///< server: a page, or a fragment of one, or two pages
  kZeros = 5,    ///< server: ranges of all-zero pages
  kAbsent = 6,   ///< server: ranges asked for that the image does not have
  kBye = 7,      ///< client leaves, or server stops
};

/// Header.flags. Unknown bits are zero on send and ignored on receipt.
inline constexpr std::uint8_t kFlagSequenced = 0x01;  ///< `seq` counts in the group's sequence
inline constexpr std::uint8_t kFlagSibling = 0x02;    ///< between clients, the server being silent
inline constexpr std::uint8_t kFlagPairs = 0x04;      ///< of a client that takes two pages a frame

// No struct is packed: every field has alignment 1, so there is no padding to remove.
struct EthHdr {
  MacAddr dst;  //  0
  MacAddr src;  //  6
  Be16 type;    // 12  kEtherType
};
static_assert(sizeof(EthHdr) == 14 && alignof(EthHdr) == 1);

/// Header of every frame, behind the Ethernet header. docs/wire-format.md, "Common header".
struct Header {
  Be16 magic;            //  0  kMagic
  std::uint8_t version;  //  2  kVersion; any other value: drop and count
  std::uint8_t type;     //  3  FrameType
  std::uint8_t flags;    //  4  kFlag...
  std::uint8_t space;    //  5  page space; 0 is guest memory
  Be16 payload_len;      //  6  bytes behind this header
  Be64 image_id;         //  8
  Be32 epoch;            // 16  of the frozen image
  Be32 incarnation;      // 20  of the server; a client echoes what it knows, 0 = nothing yet
  Be32 seq;              // 24  with kFlagSequenced: multicast frames since the server started
};
static_assert(sizeof(Header) == 28 && alignof(Header) == 1 && offsetof(Header, image_id) == 8 &&
              offsetof(Header, epoch) == 16 && offsetof(Header, seq) == 24);

struct HelloBody {
  Be64 client_id;    //  0  chosen at random when the client starts
  Be16 mtu_bytes;    //  8  of the client's port
  Be16 reserved[3];  // 10
};
static_assert(sizeof(HelloBody) == 16);

struct WelcomeBody {
  Be64 client_id;             //  0  the client that is welcomed
  Be64 nb_pages;              //  8  of the image
  Be32 report_interval_us;    // 16  how often the server wants a report
  Be16 mtu_bytes;             // 20  of the server's port
  std::uint8_t nb_fragments;  // 22  frames a page
  std::uint8_t reserved;      // 23
};
static_assert(sizeof(WelcomeBody) == 24);

/// Totals since the client started, so that a lost REQUEST loses no report.
struct ReportBody {
  Be64 clock_us;   //  0  client's monotonic clock
  Be64 rx_bytes;   //  8  frame bytes of sequenced frames received
  Be32 rx_frames;  // 16  sequenced frames received; wraps
  Be32 lost;       // 20  sequenced frames missed; wraps
  Be32 srtt_us;    // 24  smoothed request-to-arrival time, 0 = none measured
  Be32 rttvar_us;  // 28
};
static_assert(sizeof(ReportBody) == 32);

enum class Priority : std::uint8_t { kDemand = 0, kPrefetch = 1 };
inline constexpr std::uint8_t kWantRetry = 0x01;  ///< WantEntry.flags: asked before, no answer came

struct WantEntry {
  Be64 first;                //  0
  Be16 nb_pages;             //  8  1 .. kMaxWantPages
  std::uint8_t priority;     // 10  Priority
  std::uint8_t flags;        // 11  kWant...
  std::uint8_t fragments;    // 12  bit i: fragment i is missing; 0 = all. Only with nb_pages 1
  std::uint8_t reserved[3];  // 13
};
static_assert(sizeof(WantEntry) == 16);

struct RequestBody {
  Be64 client_id;     //  0
  ReportBody report;  //  8
  // 40: WantEntry[0..kMaxWants]
};
static_assert(sizeof(RequestBody) == 40);

struct PageBody {
  Be64 gfn;                   //  0
  Be32 crc32c;                //  8  of the whole page, whatever this fragment
  std::uint8_t fragment;      // 12  0 .. nb_fragments - 1
  std::uint8_t nb_fragments;  // 13  1 .. kMaxFragments
  Be16 reserved;              // 14
  // 16: fragment_bytes(fragment, nb_fragments) bytes; or a second PageBody, and the bytes of both
};
static_assert(sizeof(PageBody) == 16);

struct RangeEntry {
  Be64 first;     // 0
  Be32 nb_pages;  // 8  1 .. kMaxRangePages
};
static_assert(sizeof(RangeEntry) == 12);

struct ByeBody {
  Be64 client_id;  // 0 = the server leaves
};
static_assert(sizeof(ByeBody) == 8);

inline constexpr std::size_t kMaxFragments = 8;
inline constexpr std::size_t kMaxWants = 64;         ///< entries a REQUEST, fits MTU 1500
inline constexpr std::size_t kMaxWantPages = 256;    ///< pages an entry: bounds work per frame
inline constexpr std::size_t kMaxRanges = 64;        ///< entries a ZEROS or ABSENT
inline constexpr std::size_t kMaxRangePages = 4096;  ///< pages an entry: bounds work per frame
inline constexpr std::size_t kPageHeaderBytes = sizeof(EthHdr) + sizeof(Header) + sizeof(PageBody);
inline constexpr std::size_t kPairHeaderBytes = kPageHeaderBytes + sizeof(PageBody);
inline constexpr std::size_t kMaxFrameBytes = kPairHeaderBytes + 2 * kPageSize;
inline constexpr std::size_t kPairMtuBytes = kMaxFrameBytes - sizeof(EthHdr);
static_assert(sizeof(Header) + sizeof(RequestBody) + kMaxWants * sizeof(WantEntry) <= 1500);
static_assert(sizeof(Header) + kMaxRanges * sizeof(RangeEntry) <= 1500);

/// Distance between fragments in a page: equal parts, rounded up to 8 bytes.
[[nodiscard]] constexpr std::size_t fragment_stride(std::size_t nb_fragments) noexcept {
  return ((kPageSize + nb_fragments - 1) / nb_fragments + 7) / 8 * 8;
}
/// Payload bytes of one fragment; the last takes what is left.
[[nodiscard]] constexpr std::size_t fragment_bytes(std::size_t fragment,
                                                   std::size_t nb_fragments) noexcept {
  const std::size_t begin = fragment * fragment_stride(nb_fragments);
  const std::size_t end = begin + fragment_stride(nb_fragments);
  return (end < kPageSize ? end : kPageSize) - begin;
}
/// Frames a page takes on a link of this MTU (bytes behind the Ethernet header); 0 = MTU too small.
[[nodiscard]] constexpr std::size_t fragments_for_mtu(std::size_t mtu_bytes) noexcept {
  for (std::size_t n = 1; n <= kMaxFragments; ++n)
    if (fragment_stride(n) + sizeof(Header) + sizeof(PageBody) <= mtu_bytes) return n;
  return 0;
}
/// Bytes on the wire for one whole page: all its frames, Ethernet headers included, no FCS.
[[nodiscard]] constexpr std::size_t page_wire_bytes(std::size_t nb_fragments) noexcept {
  return nb_fragments * kPageHeaderBytes + kPageSize;
}
static_assert(fragments_for_mtu(1500) == 3 && fragments_for_mtu(4200) == 1);

/// Why a frame was dropped. Indexes a counter (kDropNames); the first group are parse()'s verdicts,
/// the second the engines', who know image and geometry.
enum class Drop : std::uint8_t {
  kNone,
  kTruncated,       ///< shorter than its header or its payload_len
  kBadMagic,        ///< EtherType ours, magic not
  kBadVersion,      ///< another protocol version
  kBadType,         ///< unknown frame type
  kBadLength,       ///< payload_len does not fit the type
  kBadField,        ///< a field outside its documented range
  kForeignImage,    ///< another image's family
  kStaleEpoch,      ///< our image, another epoch
  kOutOfRange,      ///< a page outside the image, or another page space
  kUnexpectedType,  ///< a frame type this side does not receive
  kBadCrc,          ///< page bytes do not match their CRC32C
  kUnsealed,        ///< in the clear, where frames are to be sealed
  kBadSeal,         ///< not sealed by the group's key, or not as it was sealed
  kReplayed,        ///< sealed and right, but received before, or too old to tell
  kBadHash,         ///< not what the image's hash tree has there
  kCount
};

inline constexpr std::array<std::string_view, static_cast<std::size_t>(Drop::kCount)> kDropNames{
    "none",      "truncated",     "bad_magic",   "bad_version",  "bad_type",        "bad_length",
    "bad_field", "foreign_image", "stale_epoch", "out_of_range", "unexpected_type", "bad_crc",
    "unsealed",  "bad_seal",      "replayed",    "bad_hash"};
static_assert(!kDropNames.back().empty());

/// A page and its checksum.
struct PageKey {
  Gfn gfn{};
  std::uint32_t crc32c = 0;
};

/// A parsed frame. Spans borrow from the bytes given to parse().
struct Frame {
  FrameType type{};
  std::uint8_t flags{};
  std::uint8_t space{};
  std::uint64_t image_id{};
  std::uint32_t epoch{};
  std::uint32_t incarnation{};
  std::uint32_t seq{};
  union {
    HelloBody hello;
    WelcomeBody welcome;
    RequestBody request;
    PageBody page;
    ByeBody bye;
  };
  std::span<const std::byte> tail;                      ///< page data, WantEntry[] or RangeEntry[]
  std::span<const std::byte> second_body, second_tail;  ///< of a second page, else empty

  Frame() noexcept : request{} {}
  /// Of kPage: makes `page` and `tail` those of the second page. @return false: there is none left
  [[nodiscard]] bool next_page() noexcept;
  /// Of kPage: the highest page named.
  [[nodiscard]] std::uint64_t highest_gfn() const noexcept;
  [[nodiscard]] std::size_t nb_wants() const noexcept { return tail.size() / sizeof(WantEntry); }
  [[nodiscard]] WantEntry want(std::size_t i) const noexcept;
  [[nodiscard]] std::size_t nb_ranges() const noexcept { return tail.size() / sizeof(RangeEntry); }
  [[nodiscard]] PageRange range(std::size_t i) const noexcept;
};

/// Checks everything a frame can be checked for alone; image, epoch and page bounds are the
/// engines'.
/// @param l2_payload  what follows the Ethernet header; trailing Ethernet padding is ignored
/// @return kNone with `out` filled, else the reason to count, `out` unspecified
[[nodiscard]] Drop parse(std::span<const std::byte> l2_payload, Frame& out) noexcept;

/// Who speaks, in every frame of one engine.
struct Identity {
  std::uint64_t image_id{};
  std::uint32_t epoch{};
  std::uint32_t incarnation{};
  std::uint8_t space{};
};

/// Room for the longest frame without page data.
using ControlBuffer = std::array<std::byte, 1514>;

/// Writers: each puts Ethernet header, common header and body at the front of `out` and returns the
/// bytes written. `out` must have room for the frame (kPageHeaderBytes for page_header,
/// kPairHeaderBytes for pair_header).
/// @{
std::size_t write_page_header(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                              const MacAddr& src, Gfn gfn, std::uint32_t crc32c,
                              std::size_t fragment, std::size_t nb_fragments, std::uint8_t flags,
                              std::uint32_t seq) noexcept;
std::size_t write_pair_header(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                              const MacAddr& src, const PageKey& first, const PageKey& second,
                              std::uint8_t flags, std::uint32_t seq) noexcept;
std::size_t write_ranges(std::span<std::byte> out, FrameType type, const Identity& id,
                         const MacAddr& dst, const MacAddr& src, std::span<const PageRange> ranges,
                         std::uint8_t flags, std::uint32_t seq) noexcept;
std::size_t write_hello(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                        const MacAddr& src, const HelloBody& body, std::uint8_t flags = 0) noexcept;
std::size_t write_welcome(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                          const MacAddr& src, const WelcomeBody& body) noexcept;
std::size_t write_request(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                          const MacAddr& src, const RequestBody& body,
                          std::span<const WantEntry> wants, std::uint8_t flags = 0) noexcept;
std::size_t write_bye(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                      const MacAddr& src, std::uint64_t client_id, std::uint8_t flags,
                      std::uint32_t seq) noexcept;
/// @}

}  // namespace snowfabric::wire
