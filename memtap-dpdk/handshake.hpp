// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric {

/// A part of the image, mapped in the guest's process. All three in bytes, multiples of a page.
struct Region {
  std::uint64_t base{};    ///< address in the guest's process
  std::uint64_t size{};    ///< bytes
  std::uint64_t offset{};  ///< of its first byte in the image
  constexpr bool operator==(const Region&) const = default;
};

inline constexpr std::size_t kMaxRegions = 64;
inline constexpr std::size_t kMaxHandshakeBytes = 64 * 1024;
inline constexpr std::size_t kMaxAskedPages = 4096;
inline constexpr std::size_t kMaxHandshakeFds = 2;  ///< userfaultfd, and one the guest may add

/// Reads Firecracker's message: a JSON array of {base_host_virt_addr, size, offset} with the page
/// size, in bytes, as `page_size`, as the misnamed `page_size_kib`, or absent. Other fields are
/// ignored.
/// @return EINVAL and which region is wrong and why; EOPNOTSUPP: pages other than 4096 bytes;
///         E2BIG: more than kMaxRegions or kMaxHandshakeBytes
/// Source: GuestRegionUffdMapping in Firecracker, src/vmm/src/persist.rs.
Result<std::vector<Region>> parse_handshake(std::string_view json, std::uint64_t image_bytes);

/// What a handshake hands over.
enum class Handover : std::uint8_t {
  kRegions,   ///< a userfaultfd and the regions behind it; also whatever is malformed
  kPostcopy,  ///< `[{"adapter": "qemu-postcopy"}]`: the migration channel of a QEMU, for its memory
  kPrecopy,   ///< `[{"adapter": "qemu-precopy"}]`: the same for all but its RAM, which comes by
              ///< userfaultfd
  kXen,       ///< `[{"adapter": "xen", "domain": N, "image": NAME}]`: a domain of this host
  kCompletion,  ///< `[{"complete": PID}]`: nothing, but asks that a guest gets all its memory
};
[[nodiscard]] Handover handover_of(std::string_view json) noexcept;

/// The file that a guest maps privately instead of having pages of its own.
struct MappedFile {
  std::uint64_t inode = 0;
  std::string image;  ///< as image_name()
};
/// `"file_inode"` and `"image"` of the first region. @return nullopt: it maps none
[[nodiscard]] std::optional<MappedFile> mapped_file_of(std::string_view json);

/// What a QEMU of kPostcopy or kPrecopy is to get.
struct QemuRequest {
  std::optional<std::string> image;  ///< as image_name(); none: that of whichever memtap is asked
  bool recover = false;  ///< it has paused and waits to be taken up again, `"recover": true`; else
                         ///< it was started with -incoming and waits for its first byte
  bool operator==(const QemuRequest&) const = default;
};
/// @return EINVAL: `image` is no text, or missing where `recover` is true, `recover` neither true
///         nor false, or the message is no such message
[[nodiscard]] Result<QemuRequest> qemu_request_of(std::string_view json);

/// Domain of kXen, and whether it takes the place of a memtap that died, `"recover": true`: without
/// it, the domain has never run. `"asked": [GFN, ...]`: pages that the dead one had been asked for.
struct XenDomainRequest {
  std::uint16_t domain = 0;
  std::string image;  ///< as image_name()
  bool recover = false;
  std::vector<Gfn> asked{};  ///< at most kMaxAskedPages
  bool operator==(const XenDomainRequest&) const = default;
};
/// @return EINVAL: `domain` is no number of a domain, `image` no text, `recover` neither true nor
///         false, `asked` no list of page numbers, or the message is no such message
[[nodiscard]] Result<XenDomainRequest> xen_domain_of(std::string_view json);

/// Process of kCompletion. @return EINVAL: PID is no process id, or the message is no such message
[[nodiscard]] Result<pid_t> guest_to_complete(std::string_view json);

/// Finds the end of a JSON array that arrives in pieces; parse_handshake() does the real checking.
class ArrayScanner {
 public:
  enum class Verdict { kMore, kComplete, kGarbage };
  /// Bytes are looked at once, so feeding a message byte by byte costs no more than at once.
  Verdict feed(std::string_view piece) noexcept;

 private:
  bool step(char c) noexcept;

  unsigned depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
  bool complete_ = false;
};

/// The process at the other end.
struct Peer {
  UniqueFd socket;  ///< of the handshake, or QEMU's migration channel
  UniqueFd pidfd;   ///< readable once the process died
  pid_t pid = 0;
  uid_t uid = 0;
};

/// A guest that said everything it has to say. Owns all its descriptors.
struct Attachment {
  std::vector<Region> regions;
  UniqueFd uffd;   ///< O_NONBLOCK set
  UniqueFd extra;  ///< second descriptor of the two-fd form: kept open, not used; else empty
  Peer peer;
  std::optional<MappedFile> mapped;
};

/// A QEMU that waits for its migration, handed over by whoever started it.
struct QemuAttachment {
  UniqueFd requester;  ///< stays open: it closes when the guest is gone
  Peer peer;           ///< QEMU itself; `socket` is its migration channel, O_NONBLOCK set
  std::optional<std::string> image;  ///< as of QemuRequest
  bool recover;  ///< the channel is that of `migrate-recover`: it has pages already
};

/// A domain handed over by the sf-xen-clone that keeps it.
struct XenAttachment {
  Peer peer;
  xen::DomId domain;
  std::string image;
  bool recover;
  std::vector<Gfn> asked;
};

/// Somebody who waits until a guest has all its memory.
struct CompletionRequest {
  UniqueFd requester;  ///< gets the answer, see completions.hpp
  pid_t guest;
};

/// One connection whose message has not arrived whole. Non-blocking; whatever fails, the destructor
/// closes every descriptor that came with it.
class PendingHandshake {
 public:
  /// @param socket  a connected SOCK_STREAM unix socket
  /// @return what SO_PEERCRED or pidfd_open reported
  static Result<PendingHandshake> begin(UniqueFd socket);

  /// Takes what has arrived. @return true once the message is whole
  /// @return EPROTO: garbage, too many descriptors; ECONNRESET: closed early; E2BIG: too long
  Result<bool> receive();

  /// Checks message and descriptors. Call once, after receive() returned true.
  /// @return as parse_handshake; EPROTO: no descriptor; EBADF: the first is not a userfaultfd
  Result<Attachment> finish(std::uint64_t image_bytes) &&;

  /// The same for kPostcopy and kPrecopy.
  /// @return EPROTO: no descriptor; ENOTSOCK, EINVAL: it is not a connected unix socket; as
  ///         qemu_request_of; or what the call named reported
  Result<QemuAttachment> finish_qemu() &&;

  /// The same for kXen. @return EPROTO: descriptors came with it; as xen_domain_of
  Result<XenAttachment> finish_xen() &&;

  /// The same for kCompletion. @return as guest_to_complete
  Result<CompletionRequest> finish_completion() &&;
  [[nodiscard]] Handover handover() const noexcept { return handover_of(message_); }

  [[nodiscard]] int fd() const noexcept { return peer_.socket.get(); }
  [[nodiscard]] pid_t pid() const noexcept { return peer_.pid; }
  [[nodiscard]] uid_t uid() const noexcept { return peer_.uid; }

 private:
  PendingHandshake() = default;
  Result<bool> take(std::string_view piece);

  Peer peer_;
  std::string message_;
  ArrayScanner scanner_;
  std::vector<UniqueFd> fds_;
};

}  // namespace snowfabric
