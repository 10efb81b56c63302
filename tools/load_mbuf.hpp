// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_mbuf.h>

#include <cstddef>
#include <cstdint>

#include "fabric/eth_port.hpp"

namespace snowfabric::bench {

/// Has a frame of one segment sent, which the tail owns from now on. @pre the tail has room
inline void push_frame(TxTail<>& tail, rte_mbuf* mbuf, std::size_t nb_bytes) noexcept {
  mbuf->data_len = static_cast<std::uint16_t>(nb_bytes);
  mbuf->pkt_len = mbuf->data_len;
  RTE_VERIFY(tail.push(mbuf));
}

}  // namespace snowfabric::bench
