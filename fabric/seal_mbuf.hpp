// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "fabric/seal.hpp"

namespace snowfabric {

/// Seals the frame that an mbuf of one segment holds.
/// @pre there is room for the rest of wire::kSealBytes behind it: the port's MTU counts them
inline void seal_mbuf(Seal& seal, rte_mbuf& mbuf) noexcept {
  static_assert(Seal::kHeadroom <= RTE_PKTMBUF_HEADROOM);
  const std::size_t frame_bytes = mbuf.data_len;
  mbuf.data_off = static_cast<std::uint16_t>(mbuf.data_off - Seal::kHeadroom);
  const std::span<std::byte> room{rte_pktmbuf_mtod(&mbuf, std::byte*),
                                  frame_bytes + wire::kSealBytes};
  mbuf.data_len = static_cast<std::uint16_t>(seal.seal(room, frame_bytes));
  mbuf.pkt_len = mbuf.data_len;
}

}  // namespace snowfabric
