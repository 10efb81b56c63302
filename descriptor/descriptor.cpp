// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/descriptor.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include <descriptor.pb.h>
#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <isa-l/crc.h>

#include "descriptor/bounds.hpp"
#include "fabric/base/endian.hpp"

namespace snowfabric {
namespace {

constexpr std::array<char, 8> kMagic{'S', 'F', 'V', 'M', 'D', 'E', 'S', 'C'};
constexpr std::uint32_t kVersion = 1;

/// docs/descriptor-format.md, "Header".
struct Header {
  std::array<char, 8> magic;  //  0  kMagic
  Be32 version;               //  8  kVersion
  Be32 flags;                 // 12  0
  Be64 body_bytes;            // 16
  Be32 body_crc32c;           // 24
  Be32 header_crc32c;         // 28  of the 28 bytes before it
};
static_assert(sizeof(Header) == 32 && alignof(Header) == 1 && offsetof(Header, body_bytes) == 16 &&
              std::is_trivially_copyable_v<Header>);

/// CRC32C as on the wire of the fabric; `bytes` are fewer than 2^31.
std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept {
  // ISA-L takes a pointer to non-const and does not write through it.
  auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~0U);
}
std::uint32_t header_crc32c(const Header& header) noexcept {
  return crc32c(std::as_bytes(std::span{&header, 1}).first(offsetof(Header, header_crc32c)));
}

std::unexpected<Error> corrupt(std::string_view what) {
  return fail(EBADMSG, fmt::format("descriptor: {}", what));
}

Result<void> check_version(const Header& header) {
  const std::uint32_t version = header.version.host();
  if (version == 0) return corrupt("version 0");
  if (version != kVersion)
    return fail(ENOTSUP, fmt::format("descriptor: version {}, this program reads {}: use the "
                                     "snowfabric that wrote it",
                                     version, kVersion));
  if (header.flags.host() != 0)
    return fail(ENOTSUP, fmt::format("descriptor: header flags {:#x} are unknown: use the "
                                     "snowfabric that wrote it",
                                     header.flags.host()));
  return {};
}

/// @return the body, which the header's checksum vouches for
Result<std::span<const std::byte>> open_envelope(std::span<const std::byte> file) {
  const std::size_t nb_magic = std::min(file.size(), kMagic.size());
  if (!std::ranges::equal(file.first(nb_magic), std::as_bytes(std::span{kMagic}).first(nb_magic)))
    return corrupt("not a VM descriptor: the magic is another");
  Header header;
  if (file.size() < sizeof header)
    return corrupt(
        fmt::format("truncated: {} bytes, the header has {}", file.size(), sizeof header));
  std::memcpy(&header, file.data(), sizeof header);
  if (header.header_crc32c.host() != header_crc32c(header))
    return corrupt("corrupt: the header does not fit its CRC32C");
  if (auto ok = check_version(header); !ok) return std::unexpected(ok.error());
  const std::uint64_t body_bytes = header.body_bytes.host();
  if (body_bytes > kMaxDescriptorBodyBytes)
    return fail(EFBIG, fmt::format("descriptor: body of {} bytes, at most {}", body_bytes,
                                   kMaxDescriptorBodyBytes));
  const auto body = file.subspan(sizeof header);
  if (body.size() < body_bytes)
    return corrupt(fmt::format("truncated: {} bytes of a body of {}", body.size(), body_bytes));
  if (body.size() > body_bytes)
    return corrupt(fmt::format("{} bytes behind its end", body.size() - body_bytes));
  if (header.body_crc32c.host() != crc32c(body))
    return corrupt("corrupt: the body does not fit its CRC32C");
  return body;
}

// --- the body ------------------------------------------------------------------------------------

using google::protobuf::io::CodedInputStream;

constexpr std::size_t kMostFields =
    kMaxSpaces + kMaxRamBlocks + kMaxSections + kMaxMachineArgs + 64;
constexpr std::size_t kMostNumbers = 2 * kMaxPageRanges;  ///< in one packed list

bool is_packed_list(std::uint32_t field) {
  return field >= pb::Descriptor::kZeroRunsFieldNumber &&
         field <= pb::Descriptor::kWorkingSetPagesFieldNumber;
}

/// Skips one field's value. Groups (wire types 3 and 4) do not exist in proto3.
/// @return the value's bytes, if it has a length; nullopt: malformed
std::optional<std::span<const std::byte>> skip(CodedInputStream& in, std::uint32_t wire_type,
                                               std::span<const std::byte> body) {
  std::span<const std::byte> value;
  std::uint64_t number = 0;
  int length = 0;
  bool ok = false;
  switch (wire_type) {
    case 0: ok = in.ReadVarint64(&number); break;
    case 1: ok = in.Skip(8); break;
    case 2:
      ok = in.ReadVarintSizeAsInt(&length);
      if (ok) value = body.subspan(static_cast<std::size_t>(in.CurrentPosition()));
      ok = ok && in.Skip(length);
      value = value.first(ok ? static_cast<std::size_t>(length) : 0);
      break;
    case 5: ok = in.Skip(4); break;
    default: break;
  }
  return ok ? std::optional{value} : std::nullopt;
}

/// Two bytes of body can become a message of many, or a number of eight. So count what a parse
/// would allocate before it does.
Result<void> check_cost(std::span<const std::byte> body) {
  CodedInputStream in{reinterpret_cast<const std::uint8_t*>(body.data()),
                      static_cast<int>(body.size())};
  std::size_t nb_fields = 0;
  std::array<std::size_t, 16> nb_numbers{};
  while (const std::uint32_t tag = in.ReadTag()) {
    const std::uint32_t field = tag >> 3U;
    if (++nb_fields > kMostFields)
      return corrupt(fmt::format("body: more than {} fields", kMostFields));
    const auto value = skip(in, tag & 7U, body);
    if (!value) return corrupt(fmt::format("body: field {} is malformed", field));
    if (!is_packed_list(field)) continue;
    const auto ends = [](std::byte b) { return (b & std::byte{0x80}) == std::byte{0}; };
    nb_numbers[field] += static_cast<std::size_t>(std::ranges::count_if(*value, ends));
    if (nb_numbers[field] > kMostNumbers)
      return corrupt(fmt::format("body: field {}: more than {} numbers", field, kMostNumbers));
  }
  if (!in.ConsumedEntireMessage())
    return corrupt(fmt::format("body: no field at byte {}", in.CurrentPosition()));
  return {};
}

template <class To>
std::optional<To> as_array(const std::string& bytes) {
  To to;
  if (bytes.size() != sizeof to) return std::nullopt;
  std::memcpy(&to, bytes.data(), sizeof to);
  return to;
}

std::vector<std::byte> to_bytes(std::string_view text) {
  const auto bytes = std::as_bytes(std::span{text});
  return {bytes.begin(), bytes.end()};
}
std::string as_string(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Runs and steps: bounds are checked afterwards, on the ranges. Sums of 2^22 numbers below 2^32 do
// not wrap; steps may, as unsigned numbers do.
using Numbers = google::protobuf::RepeatedField<std::uint32_t>;

void put_runs(std::span<const PageRange> ranges, Numbers& runs) {
  runs.Reserve(static_cast<int>(2 * ranges.size()));
  std::uint64_t end = 0;
  for (const PageRange& range : ranges) {
    runs.Add(static_cast<std::uint32_t>(range.first.value - end));
    runs.Add(range.nb_pages);
    end = range.first.value + range.nb_pages;
  }
}

Result<std::vector<PageRange>> get_runs(const Numbers& runs, std::string_view field) {
  if (runs.size() % 2 != 0)
    return corrupt(fmt::format("{}: {} numbers, not in pairs", field, runs.size()));
  std::vector<PageRange> ranges;
  ranges.reserve(static_cast<std::size_t>(runs.size() / 2));
  std::uint64_t end = 0;
  for (int i = 0; i < runs.size(); i += 2) {
    ranges.push_back({Gfn{end + runs[i]}, runs[i + 1]});
    end += std::uint64_t{runs[i]} + runs[i + 1];
  }
  return ranges;
}

void put_working_set(std::span<const PageRange> ranges, pb::Descriptor& out) {
  std::uint64_t end = 0;
  for (const PageRange& range : ranges) {
    out.add_working_set_steps(static_cast<std::int64_t>(range.first.value - end));
    out.add_working_set_pages(range.nb_pages);
    end = range.first.value + range.nb_pages;
  }
}

Result<std::vector<PageRange>> get_working_set(const pb::Descriptor& in) {
  const auto& steps = in.working_set_steps();
  const auto& pages = in.working_set_pages();
  if (steps.size() != pages.size())
    return corrupt(fmt::format("working_set: {} steps, {} lengths", steps.size(), pages.size()));
  std::vector<PageRange> ranges;
  ranges.reserve(static_cast<std::size_t>(steps.size()));
  std::uint64_t end = 0;
  for (int i = 0; i < steps.size(); ++i) {
    const std::uint64_t first = end + static_cast<std::uint64_t>(steps[i]);
    ranges.push_back({Gfn{first}, pages[i]});
    end = first + pages[i];
  }
  return ranges;
}

pb::Descriptor to_message(const Descriptor& d) {
  pb::Descriptor out;
  out.set_image_id(d.image_id);
  out.set_epoch(d.epoch);
  for (const PageSpace& space : d.spaces) {
    auto& to = *out.add_spaces();
    to.set_space(space.space);
    to.set_nb_pages(space.nb_pages);
  }
  for (const RamBlock& block : d.blocks) {
    auto& to = *out.add_blocks();
    to.set_name(block.name);
    to.set_first_page(block.first_page);
    to.set_nb_pages(block.nb_pages);
    to.set_used_bytes(block.used_bytes);
  }
  for (const Section& section : d.sections) {
    auto& to = *out.add_sections();
    to.set_type(std::to_underlying(section.type));
    to.set_bytes(as_string(section.bytes));
  }
  out.set_group(as_string(std::as_bytes(std::span{d.group.bytes})));
  out.set_server(as_string(std::as_bytes(std::span{d.server.bytes})));
  out.set_group_key(as_string(d.group_key));
  out.set_hash_root(as_string(d.hash_root));
  for (const std::string& arg : d.machine_args) out.add_machine_args(arg);
  out.set_frozen_at_ns(d.frozen_at_ns);
  out.set_parent_name(d.parent_name);
  out.set_parent_uuid(as_string(std::as_bytes(std::span{d.parent_uuid})));
  put_runs(d.zero_pages, *out.mutable_zero_runs());
  put_runs(d.absent_pages, *out.mutable_absent_runs());
  put_working_set(d.working_set, out);
  return out;
}

/// The fields that cannot be copied as they are.
Result<void> get_fixed_size(const pb::Descriptor& in, Descriptor& d) {
  const auto group = as_array<MacAddr>(in.group());
  if (!group) return corrupt(fmt::format("group: {} bytes, not 6", in.group().size()));
  const auto server = as_array<MacAddr>(in.server());
  if (!server) return corrupt(fmt::format("server: {} bytes, not 6", in.server().size()));
  const auto uuid = as_array<std::array<std::uint8_t, 16>>(in.parent_uuid());
  if (!uuid) return corrupt(fmt::format("parent_uuid: {} bytes, not 16", in.parent_uuid().size()));
  d.group = *group;
  const auto key = std::as_bytes(std::span{in.group_key()});
  d.group_key.assign(key.begin(), key.end());
  const auto root = std::as_bytes(std::span{in.hash_root()});
  d.hash_root.assign(root.begin(), root.end());
  d.server = *server;
  d.parent_uuid = *uuid;
  for (const pb::PageSpace& space : in.spaces()) {
    if (space.space() > std::numeric_limits<std::uint8_t>::max())
      return corrupt(fmt::format("spaces: space {}, at most 255", space.space()));
    d.spaces.push_back({static_cast<std::uint8_t>(space.space()), space.nb_pages()});
  }
  return {};
}

Result<void> get_page_lists(const pb::Descriptor& in, Descriptor& d) {
  auto zero_pages = get_runs(in.zero_runs(), "zero_pages");
  if (!zero_pages) return std::unexpected(zero_pages.error());
  auto absent_pages = get_runs(in.absent_runs(), "absent_pages");
  if (!absent_pages) return std::unexpected(absent_pages.error());
  auto working_set = get_working_set(in);
  if (!working_set) return std::unexpected(working_set.error());
  d.zero_pages = std::move(*zero_pages);
  d.absent_pages = std::move(*absent_pages);
  d.working_set = std::move(*working_set);
  return {};
}

Result<Descriptor> from_message(const pb::Descriptor& in) {
  Descriptor d;
  d.image_id = in.image_id();
  d.epoch = in.epoch();
  d.frozen_at_ns = in.frozen_at_ns();
  d.parent_name = in.parent_name();
  d.machine_args.assign(in.machine_args().begin(), in.machine_args().end());
  for (const pb::RamBlock& block : in.blocks())
    d.blocks.push_back({block.name(), block.first_page(), block.nb_pages(), block.used_bytes()});
  for (const pb::Section& section : in.sections())
    d.sections.push_back({SectionType{section.type()}, to_bytes(section.bytes())});
  if (auto ok = get_fixed_size(in, d); !ok) return std::unexpected(ok.error());
  if (auto ok = get_page_lists(in, d); !ok) return std::unexpected(ok.error());
  if (auto ok = check_bounds(d, EBADMSG); !ok) return std::unexpected(ok.error());
  return d;
}

/// Wipes a message's key at the end.
class KeyWiper {
 public:
  explicit KeyWiper(pb::Descriptor& message) noexcept : message_{message} {}
  KeyWiper(const KeyWiper&) = delete;
  KeyWiper& operator=(const KeyWiper&) = delete;
  ~KeyWiper() {
    if (message_.group_key().empty()) return;
    std::string& key = *message_.mutable_group_key();
    explicit_bzero(key.data(), key.size());
  }

 private:
  pb::Descriptor& message_;
};

Result<SecretBytes> seal(const pb::Descriptor& message) {
  const std::size_t body_bytes = message.ByteSizeLong();
  if (body_bytes > kMaxDescriptorBodyBytes)
    return fail(EFBIG, fmt::format("descriptor: body of {} bytes, at most {}", body_bytes,
                                   kMaxDescriptorBodyBytes));
  SecretBytes file(sizeof(Header) + body_bytes);
  const auto body = std::span{file}.subspan(sizeof(Header));
  if (!message.SerializeToArray(body.data(), static_cast<int>(body.size())))
    return fail(EINVAL, "descriptor: the body cannot be serialised");
  Header header{.magic = kMagic,
                .version = kVersion,
                .flags = 0,
                .body_bytes = body_bytes,
                .body_crc32c = crc32c(body),
                .header_crc32c = 0};
  header.header_crc32c = header_crc32c(header);
  std::memcpy(file.data(), &header, sizeof header);
  return file;
}

}  // namespace

const Section* Descriptor::find(SectionType type) const noexcept {
  const auto it = std::ranges::find(sections, type, &Section::type);
  return it == sections.end() ? nullptr : &*it;
}

std::string image_name(std::uint64_t image_id, std::uint32_t epoch) {
  return fmt::format("{:016x}-{}", image_id, epoch);
}

Result<SecretBytes> encode(const Descriptor& descriptor) try {
  if (auto ok = check_bounds(descriptor, EINVAL); !ok) return std::unexpected(ok.error());
  pb::Descriptor message = to_message(descriptor);
  const KeyWiper wiper{message};
  return seal(message);
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, "descriptor: encode");
}

Result<Descriptor> decode(std::span<const std::byte> file) try {
  const auto body = open_envelope(file);
  if (!body) return std::unexpected(body.error());
  if (auto ok = check_cost(*body); !ok) return std::unexpected(ok.error());
  pb::Descriptor message;
  const KeyWiper wiper{message};
  if (!message.ParseFromArray(body->data(), static_cast<int>(body->size())))
    return corrupt("body: not a Descriptor message");
  return from_message(message);
} catch (const std::bad_alloc&) {
  return fail(ENOMEM, fmt::format("descriptor: decode {} bytes", file.size()));
}

}  // namespace snowfabric
