// SPDX-License-Identifier: BSD-3-Clause
#include "sim/test_image.hpp"

#include <cstring>
#include <numeric>
#include <utility>

#include "fabric/base/prng.hpp"
#include "fabric/crc32c.hpp"

namespace snowfabric::sim {

TestImage::TestImage(std::uint64_t n, double zero_share, std::uint64_t seed)
    : bytes(n * kPageSize), crc(n), zeros((n + 63) / 64), nb_pages{n} {
  constexpr double kRunEnds = 0.25;  // so runs are of 4 pages
  const double run_begins = kRunEnds * zero_share / (1 - zero_share);
  Prng prng{seed};
  bool in_run = false;
  for (std::uint64_t p = 0; p < n; ++p) {
    in_run = in_run ? prng.uniform() >= kRunEnds : prng.uniform() < run_begins;
    const std::span<std::byte> page = std::span{bytes}.subspan(p * kPageSize, kPageSize);
    if (in_run) {
      zeros[p / 64] |= std::uint64_t{1} << (p % 64);
    } else {
      ++nb_data_pages;
      for (std::size_t i = 0; i < kPageSize; i += 8) {
        const std::uint64_t word = prng.next();
        std::memcpy(page.data() + i, &word, sizeof word);
      }
    }
    crc[p] = crc32c(page);
  }
}

ImageView TestImage::view() const {
  return {.image_id = 0x5eed, .epoch = 1, .nb_pages = nb_pages, .crc32c = crc, .zero_words = zeros};
}

HashTree TestImage::hash_tree() const {
  std::vector<Hash> hashes;
  for (std::uint64_t p = 0; p < nb_pages; ++p)
    hashes.push_back(hash_page(page(Gfn{p}).first<kPageSize>(), 0));
  return HashTree::over(hashes);
}

std::vector<std::uint64_t> sequential(std::uint64_t nb_pages) {
  std::vector<std::uint64_t> order(nb_pages);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<std::uint64_t> shuffled(std::uint64_t nb_pages, std::uint64_t seed) {
  auto order = sequential(nb_pages);
  Prng prng{seed};
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[prng.next() % i]);
  return order;
}

}  // namespace snowfabric::sim
