// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"

/// Hashes of all pages of a frozen image, and a tree over them: who knows its root takes no page
/// that the image does not have, whoever sent it. docs/wire-format.md, "Hash tree".
namespace snowfabric {

inline constexpr std::uint8_t kHashTreeSpace = 1;  ///< page space of the nodes
using Hash = std::array<std::byte, 32>;            ///< SHA-256, FIPS 180-4
inline constexpr std::size_t kHashesPerNode = kPageSize / sizeof(Hash);

/// @param level  0: a page of the image; else of a node, so many levels above. It is hashed behind
///               the bytes, so that nothing passes for what belongs on another level
[[nodiscard]] Hash hash_page(std::span<const std::byte, kPageSize> page, unsigned level) noexcept;

/// Nodes are pages: the top is page 0, the levels below follow one behind the other, and those of
/// the last hold the hashes of the image's pages. What is left over of a level's last node is zero.
/// A value; const functions may be called from any thread.
class HashTree {
 public:
  /// @param pages  hashes of all pages of an image, at least one
  [[nodiscard]] static HashTree over(std::span<const Hash> pages);
  [[nodiscard]] static std::uint64_t nb_nodes_over(std::uint64_t nb_pages) noexcept;
  /// Zeros, to be filled. @return nullopt: no tree has so many nodes
  [[nodiscard]] static std::optional<HashTree> with_room_for(std::uint64_t nb_nodes);

  [[nodiscard]] std::uint64_t nb_nodes() const noexcept { return bytes_.size() / kPageSize; }
  /// Whether it is one over so many pages. @pre no misfits
  [[nodiscard]] bool is_over(std::uint64_t nb_pages) const noexcept;
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::span<std::byte, kPageSize> node(Gfn node) noexcept {
    return std::span<std::byte, kPageSize>{bytes_.data() + node.value * kPageSize, kPageSize};
  }
  [[nodiscard]] Hash root() const noexcept;

  /// Nodes that are not what the hashes above them say, or have more hashes than there are nodes
  /// below. What is below one of them is not looked at.
  /// @return empty: this is the tree of that root
  [[nodiscard]] std::vector<Gfn> misfits(const Hash& root) const;

  /// Whether these are the bytes of a page. @pre no misfits; is_over() an image that has the page
  [[nodiscard]] bool fits(Gfn page, std::span<const std::byte, kPageSize> bytes) const noexcept;
  /// How many pages of a range, from its front on, are all zero. @pre as fits()
  [[nodiscard]] std::uint32_t nb_zero(PageRange range) const noexcept;

 private:
  explicit HashTree(std::uint64_t nb_bottom_nodes);
  [[nodiscard]] std::span<const std::byte, kPageSize> node(std::uint64_t i) const noexcept {
    return std::span<const std::byte, kPageSize>{bytes_.data() + i * kPageSize, kPageSize};
  }
  [[nodiscard]] Hash child(std::uint64_t level_begin, std::uint64_t i) const noexcept;
  [[nodiscard]] bool ends_after(std::uint64_t level_begin, std::uint64_t nb) const noexcept;
  [[nodiscard]] unsigned level_of(std::size_t depth) const noexcept {
    return static_cast<unsigned>(begins_.size() - 1 - depth);
  }

  std::vector<std::uint64_t> begins_;  // first node of each level, the top's first; last: the end
  std::vector<std::byte> bytes_;
};

}  // namespace snowfabric
