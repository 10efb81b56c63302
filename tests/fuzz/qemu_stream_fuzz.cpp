// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "descriptor/qemu_stream.hpp"

namespace {

using namespace snowfabric;

constexpr std::uint64_t kMaxPages = 64;

void must(bool holds) {
  if (!holds) std::abort();
}

/// A parent that sends `stream`.
struct Parent {
  std::span<const std::byte> stream;
  bool shares_largest;
  std::vector<std::byte> image{};

  Result<qemu::State> read() {
    return qemu::read_stream(
        [&](std::span<std::byte> out) -> Result<std::size_t> {
          const std::size_t n = std::min(out.size(), stream.size());
          std::ranges::copy(stream.first(n), out.begin());
          stream = stream.subspan(n);
          return n;
        },
        [&](std::span<const RamBlock> blocks) -> Result<std::vector<std::span<std::byte>>> {
          image.resize(qemu::nb_pages(blocks) * kPageSize);
          std::vector<std::span<std::byte>> places;
          for (const RamBlock& b : blocks)
            places.push_back(std::span{image}.subspan(b.first_page * kPageSize, b.used_bytes));
          if (shares_largest) places[0] = {};
          return places;
        },
        kMaxPages);
  }
};

/// What is accepted keeps the promises, and what is written of it reads as the same.
void fuzz_reader(std::span<const std::byte> stream, bool shares_largest) {
  Parent parent{stream, shares_largest};
  const auto state = parent.read();
  if (!state) return must(state.error().errnum > 0 && !state.error().what.empty());
  must(!state->blocks.empty() && qemu::nb_pages(state->blocks) <= kMaxPages);
  std::uint64_t next = 0;
  for (const RamBlock& b : state->blocks) {
    must(b.first_page == next && b.nb_pages > 0 && b.used_bytes == b.nb_pages * kPageSize);
    must(b.nb_pages <= state->blocks[0].nb_pages);
    next += b.nb_pages;
  }
  must(qemu::postcopy_preamble(*state).has_value());
  const auto page = [&](Gfn gfn) {
    return std::span<const std::byte>{parent.image}.subspan(gfn.value * kPageSize, kPageSize);
  };
  const auto precopy = qemu::precopy_stream(*state, 0, page);
  must(precopy.has_value());
  Parent written{*precopy, true};
  must(written.read() == *state);
  Descriptor descriptor;
  descriptor.blocks = state->blocks;
  descriptor.sections = qemu::to_sections(*state);
  must(qemu::state_of(descriptor) == *state);
}

/// Whatever a clone answers: its requests lie inside the blocks, however the bytes are cut.
std::vector<qemu::Message> messages(std::span<const std::byte> answers, std::size_t piece) {
  static const std::vector<RamBlock> blocks{{"pc.ram", 0, 70, 70 * kPageSize},
                                            {"pc.rom", 70, 2, 2 * kPageSize}};
  qemu::ReturnPath path{blocks};
  std::vector<qemu::Message> all;
  while (!answers.empty()) {
    auto in = answers.first(std::min(piece, answers.size()));
    answers = answers.subspan(in.size());
    for (;;) {
      const auto message = path.take(in);
      if (!message) return all;
      const std::optional<qemu::Message> whole = *message;
      if (!whole) break;
      must(whole->pages.first.value + whole->pages.nb_pages <= 72);
      all.push_back(*whole);
    }
    must(in.empty());
  }
  return all;
}

}  // namespace

/// First byte: bit 0: what a clone answers, else what a parent sends; bit 1: whose largest block
/// is shared.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span{data, size}).subspan(1);
  if ((data[0] & 1U) == 0) {
    fuzz_reader(bytes, (data[0] & 2U) != 0);
    return 0;
  }
  const auto whole = messages(bytes, size);
  const auto cut = messages(bytes, 1);
  must(std::ranges::equal(whole, cut, [](const qemu::Message& a, const qemu::Message& b) {
    return a.kind == b.kind && a.pages == b.pages && a.value == b.value;
  }));
  return 0;
}
