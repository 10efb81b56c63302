// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cerrno>
#include <concepts>
#include <cstring>
#include <limits>
#include <string_view>

#include <fmt/format.h>

#include "descriptor/qemu_format.hpp"
#include "descriptor/qemu_stream.hpp"
#include "fabric/base/endian.hpp"

namespace snowfabric::qemu {
namespace {

constexpr std::size_t kRangeBytes = 12;  // of a request for pages: u64 start, u32 length
constexpr std::uint64_t kPagesPerWord = 64;

template <std::unsigned_integral T>
T number_at(std::span<const std::byte> item, std::size_t at) noexcept {
  BigEndian<T> value{0};
  std::memcpy(&value, item.data() + at, sizeof value);
  return value.host();
}

/// Bytes behind the header that a message of this type may have.
bool fits(std::uint16_t type, std::size_t nb_bytes) noexcept {
  switch (type) {
    case kShutMessage:
    case kPongMessage:
    case kResumeAckMessage: return nb_bytes == 4;
    case kReqPages: return nb_bytes == kRangeBytes;
    case kReqPagesNamed: return nb_bytes > kRangeBytes && nb_bytes <= kRangeBytes + 256;
    case kReceivedBitmap: return nb_bytes > 0 && nb_bytes <= 256;
    default: return false;
  }
}

Message one_number(Message::Kind kind, std::uint64_t value) { return {kind, {}, value}; }

}  // namespace

std::unexpected<Error> ReturnPath::bad(std::string_view why) const {
  return fail(EBADMSG, fmt::format("return path of QEMU, byte {}: {}", offset_, why));
}

const RamBlock* ReturnPath::find(std::span<const std::byte> name) const noexcept {
  const auto found = std::ranges::find_if(blocks_, [name](const RamBlock& block) {
    return std::ranges::equal(std::as_bytes(std::span{block.name}), name);
  });
  return found != blocks_.end() ? &*found : nullptr;
}

/// Takes bytes until the item has `nb_bytes`. @return whether it has
bool ReturnPath::fill(std::span<const std::byte>& in, std::size_t nb_bytes) noexcept {
  const std::size_t n = std::min(nb_bytes - nb_item_, in.size());
  if (n != 0) std::memcpy(item_.data() + nb_item_, in.data(), n);
  nb_item_ += n;
  in = in.subspan(n);
  return nb_item_ == nb_bytes;
}

Result<std::optional<Message>> ReturnPath::take(std::span<const std::byte>& in) {
  for (;;) {
    std::size_t nb_bytes = sizeof(std::uint64_t);
    if (expect_ == Expect::kMessage) {
      if (nb_item_ < kHeaderBytes && !fill(in, kHeaderBytes)) return std::nullopt;
      const auto type = number_at<std::uint16_t>(item_, 0);
      const auto nb_body = number_at<std::uint16_t>(item_, 2);
      if (!fits(type, nb_body))
        return bad(fmt::format("message of type {} with {} bytes", type, nb_body));
      nb_bytes = kHeaderBytes + nb_body;
    }
    if (!fill(in, nb_bytes)) return std::nullopt;
    auto message = expect_ == Expect::kMessage ? parse_message() : parse_bitmap_item();
    if (!message) return message;
    offset_ += nb_bytes;
    nb_item_ = 0;
    if (*message) return message;
  }
}

Result<std::optional<Message>> ReturnPath::parse_message() {
  const auto value = number_at<std::uint32_t>(item_, kHeaderBytes);
  switch (number_at<std::uint16_t>(item_, 0)) {
    case kShutMessage: return one_number(Message::Kind::kShut, value);
    case kPongMessage: return one_number(Message::Kind::kPong, value);
    case kResumeAckMessage:
      if (value != 1) return bad(fmt::format("acknowledges the recovery with {}, not 1", value));
      return one_number(Message::Kind::kResumeAck, value);
    case kReceivedBitmap: return parse_bitmap_name();
    default: return parse_pages();
  }
}

Result<std::optional<Message>> ReturnPath::parse_pages() {
  const auto start = number_at<std::uint64_t>(item_, kHeaderBytes);
  const auto length = number_at<std::uint32_t>(item_, kHeaderBytes + 8);
  const auto name = std::span{item_}.first(nb_item_).subspan(kHeaderBytes + kRangeBytes);
  if (!name.empty()) {
    if (std::to_integer<std::size_t>(name[0]) != name.size() - 1)
      return bad("the name of a RAM block does not fill its message");
    asked_ = find(name.subspan(1));
  }
  if (asked_ == nullptr) return bad("asks for pages of an unknown RAM block");
  if (start % kPageSize != 0 || length % kPageSize != 0 || length == 0)
    return bad(fmt::format("asks for {:#x} bytes at {:#x}: not whole pages", length, start));
  if (start > asked_->used_bytes || length > asked_->used_bytes - start)
    return bad(fmt::format("asks for {:#x} bytes at {:#x} of RAM block {}, which has {:#x}", length,
                           start, asked_->name, asked_->used_bytes));
  return Message{Message::Kind::kPages,
                 {Gfn{asked_->first_page + start / kPageSize},
                  static_cast<std::uint32_t>(length / kPageSize)}};
}

Result<std::optional<Message>> ReturnPath::parse_bitmap_name() {
  const auto name = std::span{item_}.first(nb_item_).subspan(kHeaderBytes);
  if (std::to_integer<std::size_t>(name[0]) != name.size() - 1)
    return bad("the name of a RAM block does not fill its message");
  bitmap_ = find(name.subspan(1));
  if (bitmap_ == nullptr) return bad("tells what it has of an unknown RAM block");
  if (bitmap_->nb_pages > std::numeric_limits<std::uint32_t>::max())
    return bad("tells what it has of a RAM block too large");
  expect_ = Expect::kBitmapBytes;
  return std::nullopt;
}

/// Behind the message: u64 size in bytes, the bitmap in little-endian words, u64 mark.
Result<std::optional<Message>> ReturnPath::parse_bitmap_item() {
  const auto value = number_at<std::uint64_t>(item_, 0);
  const std::uint64_t nb_pages = bitmap_->nb_pages;
  const Gfn first{bitmap_->first_page};
  switch (expect_) {
    case Expect::kBitmapBytes:
      if (value != (nb_pages + kPagesPerWord - 1) / kPagesPerWord * sizeof(std::uint64_t))
        return bad(fmt::format("bitmap of {} bytes for {} pages of RAM block {}", value, nb_pages,
                               bitmap_->name));
      expect_ = Expect::kBitmapWord;
      bitmap_page_ = 0;
      return std::nullopt;
    case Expect::kBitmapWord: {
      const auto n = std::min(kPagesPerWord, nb_pages - bitmap_page_);
      const Message message{Message::Kind::kReceived,
                            {Gfn{first.value + bitmap_page_}, static_cast<std::uint32_t>(n)},
                            std::byteswap(value) & (~std::uint64_t{0} >> (kPagesPerWord - n))};
      bitmap_page_ += n;
      if (bitmap_page_ == nb_pages) expect_ = Expect::kBitmapMark;
      return message;
    }
    default: break;
  }
  if (value != kReceivedMark) return bad("a bitmap does not end with its mark");
  expect_ = Expect::kMessage;
  return Message{Message::Kind::kReceivedEnd, {first, static_cast<std::uint32_t>(nb_pages)}};
}

}  // namespace snowfabric::qemu
