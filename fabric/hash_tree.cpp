// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/hash_tree.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <ranges>
#include <utility>

#include <openssl/evp.h>

namespace snowfabric {
namespace {

std::uint64_t nodes_for(std::uint64_t nb_hashes) noexcept {
  return (nb_hashes + kHashesPerNode - 1) / kHashesPerNode;
}

std::uint64_t nodes_of_tree(std::uint64_t nb_bottom_nodes) noexcept {
  std::uint64_t sum = nb_bottom_nodes;
  for (std::uint64_t level = nb_bottom_nodes; level > 1; sum += level) level = nodes_for(level);
  return sum;
}

/// OpenSSL's, fetched once a thread: looking it up costs as much as a quarter of a page.
class Sha256 {
 public:
  Sha256() noexcept {
    if (context_ == nullptr || algorithm_ == nullptr) std::abort();
  }
  Hash operator()(std::span<const std::byte> first, std::span<const std::byte> second) noexcept {
    Hash hash;
    const bool ok = EVP_DigestInit_ex2(context_.get(), algorithm_.get(), nullptr) == 1 &&
                    EVP_DigestUpdate(context_.get(), first.data(), first.size()) == 1 &&
                    EVP_DigestUpdate(context_.get(), second.data(), second.size()) == 1 &&
                    EVP_DigestFinal_ex(context_.get(),
                                       reinterpret_cast<unsigned char*>(hash.data()), nullptr) == 1;
    if (!ok) std::abort();  // only a broken library: it has all the memory it needs
    return hash;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_{EVP_MD_CTX_new(),
                                                                   EVP_MD_CTX_free};
  std::unique_ptr<EVP_MD, decltype(&EVP_MD_free)> algorithm_{
      EVP_MD_fetch(nullptr, "SHA256", nullptr), EVP_MD_free};
};

const Hash& zero_page_hash() noexcept {
  static const Hash hash = hash_page(std::array<std::byte, kPageSize>{}, 0);
  return hash;
}

}  // namespace

Hash hash_page(std::span<const std::byte, kPageSize> page, unsigned level) noexcept {
  thread_local Sha256 sha256;
  const std::array behind{static_cast<std::byte>(level)};
  return sha256(page, behind);
}

HashTree::HashTree(std::uint64_t nb_bottom_nodes)
    : begins_{nodes_of_tree(nb_bottom_nodes)}, bytes_(begins_.front() * kPageSize) {
  for (std::uint64_t level = nb_bottom_nodes; begins_.front() != 0; level = nodes_for(level))
    begins_.insert(begins_.begin(), begins_.front() - level);
}

HashTree HashTree::over(std::span<const Hash> pages) {
  HashTree tree{nodes_for(pages.size())};
  const auto put = [&](std::uint64_t level_begin, std::uint64_t i, const Hash& hash) {
    std::ranges::copy(hash, tree.bytes_.begin() + static_cast<std::ptrdiff_t>(
                                                      level_begin * kPageSize + i * sizeof(Hash)));
  };
  const std::size_t bottom = tree.begins_.size() - 2;
  for (std::size_t i = 0; i < pages.size(); ++i) put(tree.begins_[bottom], i, pages[i]);
  for (std::size_t depth = bottom; depth > 0; --depth)
    for (std::uint64_t i = tree.begins_[depth]; i < tree.begins_[depth + 1]; ++i)
      put(tree.begins_[depth - 1], i - tree.begins_[depth],
          hash_page(std::as_const(tree).node(i), tree.level_of(depth)));
  return tree;
}

std::optional<HashTree> HashTree::with_room_for(std::uint64_t nb_nodes) {
  const auto bottoms = std::views::iota(std::uint64_t{1}, nb_nodes + 1);
  const auto found = std::ranges::lower_bound(bottoms, nb_nodes, {}, nodes_of_tree);
  if (found == bottoms.end() || nodes_of_tree(*found) != nb_nodes) return std::nullopt;
  return HashTree{*found};
}

std::uint64_t HashTree::nb_nodes_over(std::uint64_t nb_pages) noexcept {
  return nodes_of_tree(nodes_for(nb_pages));
}

bool HashTree::is_over(std::uint64_t nb_pages) const noexcept {
  if (nb_pages == 0 || nb_nodes_over(nb_pages) != nb_nodes()) return false;
  const std::uint64_t bottom = *(begins_.end() - 2);
  return child(bottom, nb_pages - 1) != Hash{} && ends_after(bottom, nb_pages);
}

/// The i-th hash in the nodes of a level.
Hash HashTree::child(std::uint64_t level_begin, std::uint64_t i) const noexcept {
  Hash hash;
  std::memcpy(hash.data(), bytes_.data() + level_begin * kPageSize + i * sizeof hash, sizeof hash);
  return hash;
}

/// Whether there are no more hashes in the nodes of a level than `nb`.
bool HashTree::ends_after(std::uint64_t level_begin, std::uint64_t nb) const noexcept {
  return nb % kHashesPerNode == 0 || child(level_begin, nb) == Hash{};
}

Hash HashTree::root() const noexcept { return hash_page(node(std::uint64_t{0}), level_of(0)); }

std::vector<Gfn> HashTree::misfits(const Hash& root) const {
  std::vector<Gfn> bad;
  if (this->root() != root) return {Gfn{0}};
  std::vector<bool> is_good(nb_nodes());
  is_good[0] = true;
  for (std::size_t depth = 1; depth + 1 < begins_.size(); ++depth) {
    const std::uint64_t above = begins_[depth - 1], nb = begins_[depth + 1] - begins_[depth];
    if (is_good[begins_[depth] - 1] && !ends_after(above, nb))
      bad.push_back(Gfn{begins_[depth] - 1});
    for (std::uint64_t i = 0; i < nb; ++i) {
      if (!is_good[above + i / kHashesPerNode]) continue;
      const std::uint64_t n = begins_[depth] + i;
      is_good[n] = hash_page(node(n), level_of(depth)) == child(above, i);
      if (!is_good[n]) bad.push_back(Gfn{n});
    }
  }
  return bad;
}

bool HashTree::fits(Gfn page, std::span<const std::byte, kPageSize> bytes) const noexcept {
  return child(*(begins_.end() - 2), page.value) == hash_page(bytes, 0);
}

std::uint32_t HashTree::nb_zero(PageRange range) const noexcept {
  std::uint32_t nb = 0;
  while (nb < range.nb_pages &&
         child(*(begins_.end() - 2), range.first.value + nb) == zero_page_hash())
    ++nb;
  return nb;
}

}  // namespace snowfabric
