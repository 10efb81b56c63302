// SPDX-License-Identifier: BSD-3-Clause
// Any bytes where a sealed frame is expected, and sealed frames with a byte changed or an end cut
// off: none is opened. What was not touched is, once. The receiver knows one of its two senders.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "fabric/seal.hpp"

namespace {

using namespace snowfabric;
using wire::Drop;

constexpr std::size_t kEth = sizeof(wire::EthHdr);

void check(bool holds) {
  if (!holds) std::abort();  // libFuzzer keeps the input
}

/// Of fixed sessions, so that an input meets the same frames again.
std::unique_ptr<Seal> make_seal(std::byte session) {
  wire::Session all;
  all.fill(session);
  return std::move(Seal::make_of_session(GroupKey{GroupKey::Bytes{}}, 1, all).value());
}

struct Bed {
  std::array<std::unique_ptr<Seal>, 2> senders{make_seal(std::byte{1}), make_seal(std::byte{2})};
  std::unique_ptr<Seal> receiver = make_seal(std::byte{3});
  OpenBuffer out{};
  std::span<const std::byte> inner{};

  Drop open(std::span<const std::byte> frame) {
    wire::EthHdr eth;
    std::memcpy(&eth, frame.data(), sizeof eth);
    return receiver->open(eth, frame.subspan(kEth), out, inner);
  }
};

/// @param change  where, by what, and how many bytes are left; whose frame
void check_changed(Bed& bed, std::span<const std::byte> text, std::span<const std::byte> change) {
  std::vector<std::byte> frame(kEth + text.size() + wire::kSealBytes);
  std::ranges::copy(text, frame.begin() + kEth + Seal::kHeadroom);
  const unsigned end = std::to_integer<unsigned>(change[3]);
  check(bed.senders[end >> 7U]->seal(frame, kEth + text.size()) == frame.size());
  std::uint16_t where;
  std::memcpy(&where, change.data(), sizeof where);
  std::vector<std::byte> changed = frame;
  changed[where % changed.size()] ^= change[2];
  const std::size_t left = end & 0x7fU;
  if (left != 0) changed.resize(std::max(kEth, changed.size() - std::min(changed.size(), left)));
  check((bed.open(changed) == Drop::kNone) == (changed == frame));
  if (changed != frame) check(bed.open(frame) == Drop::kNone);
  check(bed.inner.size() == text.size() && std::ranges::equal(bed.inner, text));
  bed.receiver->remember_sender();
  check(bed.open(frame) == Drop::kReplayed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kChange = 4;
  Bed bed;
  const auto bytes = std::as_bytes(std::span{data, size});
  if (bytes.size() >= kEth) check(bed.open(bytes) != Drop::kNone);
  if (bytes.size() <= kChange || bytes.size() > wire::kMaxFrameBytes - kEth) return 0;
  std::array<std::byte, kChange> change;
  std::ranges::copy(bytes.first(kChange), change.begin());
  check_changed(bed, bytes.subspan(kChange), change);
  change[3] ^= std::byte{0x80};  // the other sender, for whom the first is forgotten
  check_changed(bed, bytes.subspan(kChange), change);
  return 0;
}
