// SPDX-License-Identifier: BSD-3-Clause
// A checkpoint with bytes of the fuzzer's choice in places of its choice, its trailer signed anew
// or not: it is refused, or it is an image of the size that it says.
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "fabric/crc32c.hpp"
#include "memserver-dpdk/checkpoint.hpp"
#include "tests/fuzz/fuzz_file.hpp"

namespace {

using namespace snowfabric;
using fuzz::check;
using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kPages = 3;
constexpr std::size_t kTrailer = (kPages + 1) * kPageSize;  // behind the table
constexpr std::size_t kTableSum = 28, kChecked = 32;        // in it

/// What write_checkpoint() makes of three pages, the second zero.
const Bytes& good() {
  static const Bytes made = [] {
    char folder[] = "/tmp/sf_fuzz_XXXXXX";
    check(::mkdtemp(folder) != nullptr);
    const std::string path = std::string{folder} + "/checkpoint";
    fuzz::File raw;
    Bytes pages(kPages * kPageSize, 0x5a);
    std::fill_n(pages.begin() + kPageSize, kPageSize, std::uint8_t{0});
    const auto image = Image::open(raw.holding(pages), {.image_id = 7});
    const std::atomic<bool> stop{false};
    check(image && write_checkpoint(*image, path, std::nullopt, stop));
    const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    Bytes bytes(kTrailer + kPageSize);
    check(::read(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    ::unlink(path.c_str());
    ::rmdir(folder);
    return bytes;
  }();
  return made;
}

void put32(Bytes& bytes, std::size_t at, std::uint32_t value) {
  for (unsigned i = 0; i < 4; ++i) bytes[at + i] = static_cast<std::uint8_t>(value >> (24 - 8 * i));
}

/// Fits the checksums to what they are of, as far as they lie in the file.
void sign(Bytes& bytes, std::size_t nb_pages) {
  const std::size_t trailer = bytes.size() - kPageSize, table = nb_pages * kPageSize;
  if (table + nb_pages * 4 <= trailer)
    put32(bytes, trailer + kTableSum,
          crc32c(std::as_bytes(std::span{bytes}.subspan(table, nb_pages * 4))));
  put32(bytes, trailer + kChecked,
        crc32c(std::as_bytes(std::span{bytes}.subspan(trailer, kChecked))));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static fuzz::File file;
  if (size < 3) return 0;
  Bytes bytes = good();
  // Pages fewer or more, before the trailer.
  const Bytes trailer(bytes.begin() + kTrailer, bytes.end());
  bytes.resize((1 + data[0] % 8) * kPageSize, data[1]);
  std::ranges::copy(trailer, bytes.end() - kPageSize);
  const std::size_t at_trailer = bytes.size() - kPageSize;
  // Triples: where, mostly in the trailer, and what.
  for (std::size_t i = 3; i + 3 <= size; i += 3) {
    const std::size_t at =
        data[i] < 0x40 ? data[i] * std::size_t{256} + data[i + 1] : at_trailer + data[i] % 40;
    if (at < bytes.size()) bytes[at] = data[i + 2];
  }
  if ((data[2] & 1U) != 0) sign(bytes, data[2] >> 1U);
  if (const auto image = open_checkpoint(file.holding(bytes), {})) {
    check((image->nb_pages() + 2) * kPageSize == bytes.size() && image->image_id() != 0);
    for (std::uint64_t page = 0; page < image->nb_pages(); ++page)
      check(image->is_zero(Gfn{page}) || crc32c(image->page(Gfn{page})) == image->crc(Gfn{page}));
  }
  return 0;
}
