// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/tree_guest.hpp"

#include <algorithm>
#include <array>

namespace snowfabric {

TreeGuest::TreeGuest(HashTree& tree)
    : tree_{tree},
      words_(Presence::words_for(tree.nb_nodes())),
      presence_{words_, tree.nb_nodes()} {}

std::size_t TreeGuest::check(const Hash& root) {
  const std::vector<Gfn> bad = tree_.misfits(root);
  for (const Gfn node : bad) presence_.unclaim(node);
  return bad.size();
}

void TreeGuest::put(Gfn node, std::span<const std::byte, kPageSize> bytes) noexcept {
  if (!presence_.claim(node, PageState::kClaimedByMemtap)) return;
  std::ranges::copy(bytes, tree_.node(node).begin());
  counters_.installed_pages.add(1);
}

Install TreeGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  for (std::size_t i = 0; i < pages.size() / kPageSize; ++i)
    put(Gfn{first.value + i}, pages.subspan(i * kPageSize).first<kPageSize>());
  return Install::kDone;
}

Install TreeGuest::install_zeros(PageRange pages) noexcept {
  for (std::uint32_t i = 0; i < pages.nb_pages; ++i)
    put(Gfn{pages.first.value + i}, std::array<std::byte, kPageSize>{});
  return Install::kDone;
}

}  // namespace snowfabric
