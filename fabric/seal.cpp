// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/seal.hpp"

#include <fcntl.h>
#include <intel-ipsec-mb.h>
#include <string.h>  // explicit_bzero
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <new>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <sys/random.h>
#include <sys/stat.h>

#include "fabric/base/hex.hpp"
#include "fabric/base/unique_fd.hpp"

namespace snowfabric {
namespace {

using wire::Drop;
using wire::SealHeader;
using wire::Session;

constexpr std::size_t kSha256Bytes = 32, kSha256Block = 64;
constexpr std::size_t kMostText = 64;                         // of an HMAC
constexpr std::string_view kPurpose = "snowfabric frames 1";  // of the keys derived here

const std::uint8_t* raw(const void* bytes) { return static_cast<const std::uint8_t*>(bytes); }
std::uint8_t* raw(void* bytes) { return static_cast<std::uint8_t*>(bytes); }

struct ManagerFree {
  void operator()(IMB_MGR* manager) const noexcept { free_mb_mgr(manager); }
};
using Manager = std::unique_ptr<IMB_MGR, ManagerFree>;

/// RFC 2104, for a key of at most a block and a text of at most kMostText.
std::array<std::byte, kSha256Bytes> hmac_sha256(IMB_MGR* manager, std::span<const std::byte> key,
                                                std::span<const std::byte> text) {
  std::array<std::byte, kSha256Block + kMostText> inner{};
  std::array<std::byte, kSha256Block + kSha256Bytes> outer{};
  for (std::size_t i = 0; i < kSha256Block; ++i) {
    const std::byte byte = i < key.size() ? key[i] : std::byte{};
    inner[i] = byte ^ std::byte{0x36};
    outer[i] = byte ^ std::byte{0x5c};
  }
  std::ranges::copy(text, inner.begin() + kSha256Block);
  std::array<std::byte, kSha256Bytes> out;
  IMB_SHA256(manager, inner.data(), kSha256Block + text.size(), raw(outer.data() + kSha256Block));
  IMB_SHA256(manager, outer.data(), outer.size(), raw(out.data()));
  explicit_bzero(inner.data(), inner.size());
  explicit_bzero(outer.data(), outer.size());
  return out;
}

/// What one sender's frames are sealed by.
struct alignas(64) SessionKey {
  gcm_key_data gcm;

  SessionKey(IMB_MGR* manager, const GroupKey& group, const Session& session) {
    std::array<std::byte, kPurpose.size() + sizeof(Session)> text;
    static_assert(text.size() <= kMostText);
    std::memcpy(text.data(), kPurpose.data(), kPurpose.size());
    std::ranges::copy(session, text.begin() + kPurpose.size());
    auto key = hmac_sha256(manager, group.bytes(), text);
    IMB_AES256_GCM_PRE(manager, key.data(), &gcm);
    explicit_bzero(key.data(), key.size());
  }
  SessionKey(const SessionKey&) = default;
  SessionKey& operator=(const SessionKey&) = default;
  ~SessionKey() { explicit_bzero(&gcm, sizeof gcm); }
};

/// A sender that is remembered.
struct Sender {
  Session session;
  SessionKey key;
  ReplayWindow window{};
};
using Senders = std::list<Sender>;

using Iv = std::array<std::byte, 12>;

/// No two frames of a key have the same.
Iv iv_of(const Be64& counter) {
  Iv iv{};
  std::memcpy(iv.data() + iv.size() - sizeof counter, &counter, sizeof counter);
  return iv;
}

/// Half of a session is enough to find it; it is random, and compared whole by the tag.
struct SessionHash {
  std::size_t operator()(const Session& session) const noexcept {
    std::size_t hash;
    std::memcpy(&hash, session.data(), sizeof hash);
    return hash;
  }
};

}  // namespace

// --- the group's key -------------------------------------------------------------------------

GroupKey::~GroupKey() { explicit_bzero(bytes_.data(), bytes_.size()); }

Result<GroupKey> GroupKey::read(const std::string& path) {
  const UniqueFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file) return fail(errno, "open key file " + path);
  struct stat status{};
  if (fstat(file.get(), &status) != 0) return fail(errno, "stat key file " + path);
  if (S_ISREG(status.st_mode) && (status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    return fail(EACCES, "key file " + path + " is open to others than its owner: chmod 600");
  std::array<char, 2 * kBytes + 2> text{};  // one more than a line
  std::size_t nb_read = 0;
  while (nb_read < text.size()) {
    const ssize_t n = ::read(file.get(), text.data() + nb_read, text.size() - nb_read);
    if (n < 0) return fail(errno, "read key file " + path);
    if (n == 0) break;
    nb_read += static_cast<std::size_t>(n);
  }
  if (nb_read == 2 * kBytes + 1 && text[2 * kBytes] == '\n') --nb_read;
  Bytes bytes{};
  const bool good = from_hex({text.data(), nb_read}, bytes);
  explicit_bzero(text.data(), text.size());
  GroupKey key{bytes};
  explicit_bzero(bytes.data(), bytes.size());
  if (!good)
    return fail(EBADMSG, "key file " + path +
                             ": not 64 hexadecimal digits; `openssl rand -hex 32`"
                             " makes them");
  return key;
}

// --- replays ---------------------------------------------------------------------------------

bool ReplayWindow::accept(std::uint64_t counter) noexcept {
  constexpr std::uint64_t kBits = 64;
  if (counter + kFrames <= highest_) return false;
  if (counter > highest_) {
    const std::uint64_t nb_new = std::min(counter / kBits - highest_ / kBits, kWords);
    for (std::uint64_t i = 1; i <= nb_new; ++i) seen_[(highest_ / kBits + i) % kWords] = 0;
    highest_ = counter;
  }
  std::uint64_t& word = seen_[counter / kBits % kWords];
  const std::uint64_t bit = std::uint64_t{1} << counter % kBits;
  if ((word & bit) != 0) return false;
  word |= bit;
  return true;
}

// --- frames ----------------------------------------------------------------------------------

struct Seal::Impl {
  Impl(Manager its, const GroupKey& key, std::size_t most, const Session& drawn)
      : manager{std::move(its)},
        group{key},
        max_senders{most},
        session{drawn},
        own{manager.get(), group, session},
        stranger{own},
        strangers_session{session} {}

  [[nodiscard]] bool is_right(const SessionKey& key, std::span<const std::byte> head,
                              std::span<const std::byte> sealed, const Be64& counter,
                              std::byte* out) const noexcept;

  Manager manager;
  GroupKey group;
  std::size_t max_senders;
  Session session;
  SessionKey own;
  std::uint64_t nb_sealed = 0;
  Senders senders{};  // who was silent longest is first
  std::unordered_map<Session, Senders::iterator, SessionHash> by_session{};

  SessionKey stranger;  // of strangers_session: a key costs more than opening a short frame
  Session strangers_session;
  std::uint64_t strangers_counter = 0;  // of the frame opened last; 0: nobody to remember
};

Seal::Seal(std::unique_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}
Seal::~Seal() = default;

Result<std::unique_ptr<Seal>> Seal::make(const GroupKey& key, std::size_t max_senders) {
  Session session;
  if (getrandom(session.data(), session.size(), 0) < 0)  // so few come at once
    return fail(errno, "getrandom");
  return make_of_session(key, max_senders, session);
}

Result<std::unique_ptr<Seal>> Seal::make_of_session(const GroupKey& key, std::size_t max_senders,
                                                    const Session& session) {
  Manager manager{alloc_mb_mgr(0)};
  if (manager == nullptr) return fail(ENOMEM, "alloc_mb_mgr");
  init_mb_mgr_auto(manager.get(), nullptr);
  if (imb_get_errno(manager.get()) != 0)
    return fail(ENOTSUP,
                std::string{"init_mb_mgr_auto: "} + imb_get_strerror(imb_get_errno(manager.get())));
  return std::unique_ptr<Seal>{
      new Seal{std::make_unique<Impl>(std::move(manager), key, max_senders, session)}};
}

const Session& Seal::session() const noexcept { return impl_->session; }

std::size_t Seal::seal(std::span<std::byte> buffer, std::size_t frame_bytes) noexcept {
  constexpr std::size_t kHead = sizeof(wire::EthHdr) + sizeof(SealHeader);
  const std::size_t inner_bytes = frame_bytes - sizeof(wire::EthHdr);
  std::memmove(buffer.data(), buffer.data() + kHeadroom, sizeof(wire::EthHdr));
  const SealHeader header{.magic = Be16{wire::kSealedMagic},
                          .version = wire::kSealedVersion,
                          .reserved = 0,
                          .length = Be16{static_cast<std::uint16_t>(inner_bytes)},
                          .reserved2 = Be16{0},
                          .session = impl_->session,
                          .counter = Be64{++impl_->nb_sealed}};
  std::memcpy(buffer.data() + sizeof(wire::EthHdr), &header, sizeof header);
  std::byte* const inner = buffer.data() + kHead;  // where the engine wrote it
  gcm_context_data context;
  IMB_AES256_GCM_ENC(impl_->manager, &impl_->own.gcm, &context, raw(inner), raw(inner), inner_bytes,
                     raw(iv_of(header.counter).data()), raw(buffer.data()), kHead,
                     raw(inner + inner_bytes), wire::kTagBytes);
  return frame_bytes + wire::kSealBytes;
}

bool Seal::Impl::is_right(const SessionKey& key, std::span<const std::byte> head,
                          std::span<const std::byte> sealed, const Be64& counter,
                          std::byte* out) const noexcept {
  const std::size_t inner_bytes = sealed.size() - wire::kTagBytes;
  std::array<std::byte, wire::kTagBytes> tag;
  gcm_context_data context;
  IMB_AES256_GCM_DEC(manager, &key.gcm, &context, raw(out), raw(sealed.data()), inner_bytes,
                     raw(iv_of(counter).data()), raw(head.data()), head.size(), raw(tag.data()),
                     tag.size());
  std::byte differences{};  // in a time that does not tell where
  for (std::size_t i = 0; i < tag.size(); ++i) differences |= tag[i] ^ sealed[inner_bytes + i];
  return differences == std::byte{};
}

Drop Seal::open(const wire::EthHdr& eth, std::span<const std::byte> payload, OpenBuffer& out,
                std::span<const std::byte>& inner) noexcept {
  Impl& own = *impl_;
  own.strangers_counter = 0;
  SealHeader header;
  if (payload.size() < sizeof header) return Drop::kTruncated;
  std::memcpy(&header, payload.data(), sizeof header);
  if (header.magic.host() != wire::kSealedMagic) return Drop::kUnsealed;
  if (header.version != wire::kSealedVersion) return Drop::kBadVersion;
  const std::size_t nb_sealed = header.length.host() + wire::kTagBytes;
  if (payload.size() - sizeof header < nb_sealed) return Drop::kTruncated;
  if (header.length.host() > out.size()) return Drop::kBadLength;
  const std::uint64_t counter = header.counter.host();
  if (counter == 0 || header.session == own.session) return Drop::kReplayed;  // thrown back at us
  const auto sealed = payload.subspan(sizeof header, nb_sealed);
  std::array<std::byte, sizeof eth + sizeof header> head;
  std::memcpy(head.data(), &eth, sizeof eth);
  std::memcpy(head.data() + sizeof eth, &header, sizeof header);

  const auto found = own.by_session.find(header.session);
  const bool is_known = found != own.by_session.end();
  if (!is_known && header.session != own.strangers_session) {
    own.stranger = SessionKey{own.manager.get(), own.group, header.session};
    own.strangers_session = header.session;
  }
  const SessionKey& key = is_known ? found->second->key : own.stranger;
  if (!own.is_right(key, head, sealed, header.counter, out.data())) return Drop::kBadSeal;
  if (is_known) {
    if (!found->second->window.accept(counter)) return Drop::kReplayed;
    own.senders.splice(own.senders.end(), own.senders, found->second);
  } else {
    own.strangers_counter = counter;
  }
  inner = std::span{out}.first(header.length.host());
  return Drop::kNone;
}

void Seal::remember_sender() noexcept {
  Impl& own = *impl_;
  const std::uint64_t counter = std::exchange(own.strangers_counter, 0);
  if (counter == 0) return;
  try {
    if (own.senders.size() >= own.max_senders) {
      own.by_session.erase(own.senders.front().session);
      own.senders.pop_front();
    }
    Senders made;
    made.emplace_back(own.strangers_session, own.stranger);
    (void)made.front().window.accept(counter);
    own.by_session.emplace(own.strangers_session, made.begin());
    own.senders.splice(own.senders.end(), made);
  } catch (const std::bad_alloc&) {
    return;  // it stays a stranger, whose replays are not told
  }
}

}  // namespace snowfabric
