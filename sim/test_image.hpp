// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/hash_tree.hpp"
#include "fabric/server_engine.hpp"

namespace snowfabric::sim {

using Bytes = std::vector<std::byte>;

/// An image of seeded random pages, a share of them zero, in runs as in a real guest.
struct TestImage {
  TestImage(std::uint64_t nb_pages, double zero_share, std::uint64_t seed);
  [[nodiscard]] ImageView view() const;
  [[nodiscard]] HashTree hash_tree() const;
  [[nodiscard]] std::span<const std::byte> page(Gfn p) const {
    return std::span{bytes}.subspan(p.value * kPageSize, kPageSize);
  }
  [[nodiscard]] bool is_zero(Gfn p) const { return view().is_zero(p); }
  Bytes bytes;
  std::vector<std::uint32_t> crc;
  std::vector<std::uint64_t> zeros;
  std::uint64_t nb_pages, nb_data_pages = 0;
};

[[nodiscard]] std::vector<std::uint64_t> sequential(std::uint64_t nb_pages);
[[nodiscard]] std::vector<std::uint64_t> shuffled(std::uint64_t nb_pages, std::uint64_t seed);

}  // namespace snowfabric::sim
