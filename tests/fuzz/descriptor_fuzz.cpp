// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "descriptor/bounds.hpp"
#include "descriptor/descriptor.hpp"
#include "descriptor/qemu_stream.hpp"
#include "descriptor/xen_state.hpp"
#include "fabric/base/endian.hpp"
#include "fabric/crc32c.hpp"

namespace {

using namespace snowfabric;
using Bytes = std::vector<std::byte>;

/// The same file with a length and checksums that fit: a fuzzer does not find those.
Bytes resealed(Bytes file) {
  constexpr std::size_t kHeaderBytes = 32;
  if (file.size() < kHeaderBytes) return file;
  const auto put = [&file](std::size_t offset, const auto& value) {
    std::memcpy(file.data() + offset, &value, sizeof value);
  };
  const auto body = std::span{file}.subspan(kHeaderBytes);
  put(16, Be64{body.size()});
  put(24, Be32{crc32c(body)});
  put(28, Be32{crc32c(std::span{file}.first(28))});
  return file;
}

/// What the reader accepts keeps every bound, and is written and read back as it is.
void check(const Bytes& file) {
  const auto descriptor = decode(file);
  if (!descriptor) {
    if (descriptor.error().errnum <= 0 || descriptor.error().what.empty()) std::abort();
    return;
  }
  if (!check_bounds(*descriptor, EINVAL)) std::abort();
  if (const auto state = xen::state_of(*descriptor)) {
    Descriptor other = *descriptor;
    other.sections = xen::sections_of(*state);
    if (xen::state_of(other) != *state) std::abort();
  }
  if (const auto state = qemu::state_of(*descriptor); state && state->blocks != descriptor->blocks)
    std::abort();
  const auto again = encode(*descriptor);
  if (!again) std::abort();
  const auto same = decode(*again);
  if (!same || *same != *descriptor) std::abort();
}

}  // namespace

/// Whatever a file holds: no crash, and no descriptor outside its bounds.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span{data, size});
  const Bytes file(bytes.begin(), bytes.end());
  check(file);
  check(resealed(file));
  return 0;
}
