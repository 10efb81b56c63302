// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/wire.hpp"

#include <algorithm>
#include <cstring>

namespace snowfabric::wire {
namespace {

template <class Body>
Drop take(std::span<const std::byte> payload, Body& body,
          std::span<const std::byte>& tail) noexcept {
  if (payload.size() < sizeof body) return Drop::kBadLength;
  std::memcpy(&body, payload.data(), sizeof body);
  tail = payload.subspan(sizeof body);
  return Drop::kNone;
}

template <class Body>
Drop take_exact(std::span<const std::byte> payload, Body& body) noexcept {
  std::span<const std::byte> rest;
  const Drop why = take(payload, body, rest);
  return why == Drop::kNone && !rest.empty() ? Drop::kBadLength : why;
}

/// A run of 1 .. max pages whose end can be computed: no sum of page numbers overflows behind here.
bool valid_run(std::uint64_t first, std::uint64_t nb_pages, std::uint64_t max) noexcept {
  return nb_pages != 0 && nb_pages <= max && first <= ~std::uint64_t{0} - nb_pages;
}

Drop parse_hello(std::span<const std::byte> payload, Frame& out) noexcept {
  if (const Drop why = take_exact(payload, out.hello); why != Drop::kNone) return why;
  return out.hello.client_id.host() == 0 ? Drop::kBadField : Drop::kNone;
}

Drop parse_welcome(std::span<const std::byte> payload, Frame& out) noexcept {
  if (const Drop why = take_exact(payload, out.welcome); why != Drop::kNone) return why;
  const std::size_t n = out.welcome.nb_fragments;
  const std::uint64_t nb_pages = out.welcome.nb_pages.host();
  if (n == 0 || n > kMaxFragments) return Drop::kBadField;
  if (nb_pages == 0 || nb_pages > ~std::uint32_t{0}) return Drop::kBadField;
  return out.welcome.report_interval_us.host() == 0 ? Drop::kBadField : Drop::kNone;
}

Drop parse_request(std::span<const std::byte> payload, Frame& out) noexcept {
  if (const Drop why = take(payload, out.request, out.tail); why != Drop::kNone) return why;
  if (out.tail.size() % sizeof(WantEntry) != 0 || out.nb_wants() > kMaxWants)
    return Drop::kBadLength;
  if (out.request.client_id.host() == 0) return Drop::kBadField;
  for (std::size_t i = 0; i < out.nb_wants(); ++i) {
    const WantEntry want = out.want(i);
    const std::uint64_t nb_pages = want.nb_pages.host();
    if (!valid_run(want.first.host(), nb_pages, kMaxWantPages)) return Drop::kBadField;
    if (want.priority > static_cast<std::uint8_t>(Priority::kPrefetch)) return Drop::kBadField;
    if (want.fragments != 0 && nb_pages != 1) return Drop::kBadField;
  }
  return Drop::kNone;
}

Drop parse_page(std::span<const std::byte> payload, Frame& out) noexcept {
  if (const Drop why = take(payload, out.page, out.tail); why != Drop::kNone) return why;
  const std::size_t n = out.page.nb_fragments;
  if (n == 0 || n > kMaxFragments || out.page.fragment >= n) return Drop::kBadField;
  if (out.tail.size() == fragment_bytes(out.page.fragment, n)) return Drop::kNone;
  if (n != 1 || out.tail.size() != sizeof(PageBody) + 2 * kPageSize) return Drop::kBadLength;
  PageBody second;
  out.second_body = out.tail.first(sizeof second);
  std::memcpy(&second, out.second_body.data(), sizeof second);
  out.second_tail = out.tail.last(kPageSize);
  out.tail = out.tail.subspan(sizeof second, kPageSize);
  return second.fragment == 0 && second.nb_fragments == 1 ? Drop::kNone : Drop::kBadField;
}

Drop parse_ranges(std::span<const std::byte> payload, Frame& out) noexcept {
  out.tail = payload;
  if (payload.empty() || payload.size() % sizeof(RangeEntry) != 0 || out.nb_ranges() > kMaxRanges)
    return Drop::kBadLength;
  for (std::size_t i = 0; i < out.nb_ranges(); ++i) {
    const PageRange range = out.range(i);
    if (!valid_run(range.first.value, range.nb_pages, kMaxRangePages)) return Drop::kBadField;
  }
  return Drop::kNone;
}

/// Appends fixed-size pieces to a frame.
class Writer {
 public:
  explicit Writer(std::span<std::byte> out) noexcept : out_{out} {}
  template <class T>
  void put(const T& piece) noexcept {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) == 1);
    std::memcpy(out_.data() + size_, &piece, sizeof piece);
    size_ += sizeof piece;
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::span<std::byte> out_;
  std::size_t size_ = 0;
};

void put_headers(Writer& w, FrameType type, const Identity& id, const MacAddr& dst,
                 const MacAddr& src, std::size_t payload_len, std::uint8_t flags,
                 std::uint32_t seq) noexcept {
  // One by one: a load of what was just put together from smaller stores would wait for them.
  w.put(dst);
  w.put(src);
  w.put(Be16{kEtherType});
  w.put(Header{.magic = kMagic,
               .version = kVersion,
               .type = static_cast<std::uint8_t>(type),
               .flags = flags,
               .space = id.space,
               .payload_len = static_cast<std::uint16_t>(payload_len),
               .image_id = id.image_id,
               .epoch = id.epoch,
               .incarnation = id.incarnation,
               .seq = seq});
}

PageBody whole(const PageKey& key) noexcept {
  return {.gfn = key.gfn.value,
          .crc32c = key.crc32c,
          .fragment = 0,
          .nb_fragments = 1,
          .reserved = std::uint16_t{0}};
}

}  // namespace

bool Frame::next_page() noexcept {
  if (second_body.empty()) return false;
  std::memcpy(&page, second_body.data(), sizeof page);
  tail = second_tail;
  second_body = {};
  return true;
}

std::uint64_t Frame::highest_gfn() const noexcept {
  const std::uint64_t first = page.gfn.host();
  if (second_body.empty()) return first;
  PageBody second;
  std::memcpy(&second, second_body.data(), sizeof second);
  return std::max(first, second.gfn.host());
}

WantEntry Frame::want(std::size_t i) const noexcept {
  WantEntry entry;
  std::memcpy(&entry, tail.data() + i * sizeof entry, sizeof entry);
  return entry;
}

PageRange Frame::range(std::size_t i) const noexcept {
  RangeEntry entry;
  std::memcpy(&entry, tail.data() + i * sizeof entry, sizeof entry);
  return {Gfn{entry.first.host()}, entry.nb_pages.host()};
}

Drop parse(std::span<const std::byte> l2_payload, Frame& out) noexcept {
  Header h;
  if (l2_payload.size() < sizeof h) return Drop::kTruncated;
  std::memcpy(&h, l2_payload.data(), sizeof h);
  if (h.magic.host() != kMagic) return Drop::kBadMagic;
  if (h.version != kVersion) return Drop::kBadVersion;
  const std::size_t len = h.payload_len.host();
  if (len > l2_payload.size() - sizeof h) return Drop::kTruncated;
  out.type = static_cast<FrameType>(h.type);
  out.flags = h.flags;
  out.space = h.space;
  out.image_id = h.image_id.host();
  out.epoch = h.epoch.host();
  out.incarnation = h.incarnation.host();
  out.seq = h.seq.host();
  out.tail = {};
  out.second_body = {};
  const auto payload = l2_payload.subspan(sizeof h, len);
  switch (out.type) {
    case FrameType::kHello: return parse_hello(payload, out);
    case FrameType::kWelcome: return parse_welcome(payload, out);
    case FrameType::kRequest: return parse_request(payload, out);
    case FrameType::kPage: return parse_page(payload, out);
    case FrameType::kZeros:
    case FrameType::kAbsent: return parse_ranges(payload, out);
    case FrameType::kBye: return take_exact(payload, out.bye);
  }
  return Drop::kBadType;
}

std::size_t write_page_header(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                              const MacAddr& src, Gfn gfn, std::uint32_t crc32c,
                              std::size_t fragment, std::size_t nb_fragments, std::uint8_t flags,
                              std::uint32_t seq) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kPage, id, dst, src,
              sizeof(PageBody) + fragment_bytes(fragment, nb_fragments), flags, seq);
  w.put(PageBody{.gfn = gfn.value,
                 .crc32c = crc32c,
                 .fragment = static_cast<std::uint8_t>(fragment),
                 .nb_fragments = static_cast<std::uint8_t>(nb_fragments),
                 .reserved = std::uint16_t{0}});
  return w.size();
}

std::size_t write_pair_header(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                              const MacAddr& src, const PageKey& first, const PageKey& second,
                              std::uint8_t flags, std::uint32_t seq) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kPage, id, dst, src, 2 * (sizeof(PageBody) + kPageSize), flags, seq);
  w.put(whole(first));
  w.put(whole(second));
  return w.size();
}

std::size_t write_ranges(std::span<std::byte> out, FrameType type, const Identity& id,
                         const MacAddr& dst, const MacAddr& src, std::span<const PageRange> ranges,
                         std::uint8_t flags, std::uint32_t seq) noexcept {
  Writer w{out};
  put_headers(w, type, id, dst, src, ranges.size() * sizeof(RangeEntry), flags, seq);
  for (const PageRange& range : ranges) w.put(RangeEntry{range.first.value, range.nb_pages});
  return w.size();
}

std::size_t write_hello(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                        const MacAddr& src, const HelloBody& body, std::uint8_t flags) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kHello, id, dst, src, sizeof body, flags, 0);
  w.put(body);
  return w.size();
}

std::size_t write_welcome(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                          const MacAddr& src, const WelcomeBody& body) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kWelcome, id, dst, src, sizeof body, 0, 0);
  w.put(body);
  return w.size();
}

std::size_t write_request(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                          const MacAddr& src, const RequestBody& body,
                          std::span<const WantEntry> wants, std::uint8_t flags) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kRequest, id, dst, src, sizeof body + wants.size() * sizeof(WantEntry),
              flags, 0);
  w.put(body);
  for (const WantEntry& want : wants) w.put(want);
  return w.size();
}

std::size_t write_bye(std::span<std::byte> out, const Identity& id, const MacAddr& dst,
                      const MacAddr& src, std::uint64_t client_id, std::uint8_t flags,
                      std::uint32_t seq) noexcept {
  Writer w{out};
  put_headers(w, FrameType::kBye, id, dst, src, sizeof(ByeBody), flags, seq);
  w.put(ByeBody{client_id});
  return w.size();
}

}  // namespace snowfabric::wire
