// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/repairs.hpp"
#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/presence_file.hpp"

namespace snowfabric {

/// How a memory file, and a clone that maps it, say which image it is.
[[nodiscard]] std::string image_name(const ImageGeometry& image);

/// Every page of the image that has come to this host, in a memory file: for clones that come
/// later, and for clones that map the file instead of having copies. Only memtap writes it, and
/// each page appears whole: UFFDIO_COPY into a registered mapping of our own. One thread. Source:
/// docs/design.md, "What a host keeps".
class KeptImage final : public RepairSource {
 public:
  /// @return EPERM: no userfaultfd; ENOMEM; or what the call named reported
  [[nodiscard]] static Result<std::unique_ptr<KeptImage>> create(const ImageGeometry& image);

  KeptImage(const KeptImage&) = delete;
  KeptImage& operator=(const KeptImage&) = delete;
  ~KeptImage() override;

  /// Makes a symbolic link to the file, by which clones open it; it goes with this object. The
  /// caller knows that the path is its own to use.
  /// @return EEXIST: something else than a link is there; or what the call named reported
  [[nodiscard]] Result<void> publish(const std::string& link);

  /// Keeps pages that are not kept yet. @return pages that could not be: the host is short of
  /// memory
  std::uint64_t put(Gfn first, std::span<const std::byte> pages) noexcept;
  void put_zeros(PageRange pages) noexcept;

  /// Whether the page is known: its bytes are here, or it is all zero. @pre page is in the image
  /// @{
  [[nodiscard]] bool has(Gfn page) const noexcept { return bit(kept_, page); }
  [[nodiscard]] bool is_zero(Gfn page) const noexcept { return bit(zero_, page); }
  [[nodiscard]] bool knows(Gfn page) const noexcept override { return has(page) || is_zero(page); }
  /// @}
  /// @pre has(page)
  [[nodiscard]] std::span<const std::byte, kPageSize> page(Gfn page) const noexcept {
    return std::span<const std::byte, kPageSize>{memory_.data() + page.value * kPageSize,
                                                 kPageSize};
  }
  /// Gives what is known of a page to a guest; a zero page with the zero pages around it.
  /// @pre knows(page)
  Install give(Gfn page, GuestAdapter& guest) const noexcept {
    return has(page) ? guest.install(page, this->page(page)) : guest.install_zeros(zero_run(page));
  }
  [[nodiscard]] std::optional<std::span<const std::byte, kPageSize>> bytes(
      Gfn page) const noexcept override {
    return has(page) ? std::optional{this->page(page)} : std::nullopt;
  }
  /// At most kMaxZeroRun pages to either side.
  [[nodiscard]] PageRange zero_run(Gfn page) const noexcept override;
  static constexpr std::uint64_t kMaxZeroRun = 512;

  /// Takes the pages out of our own page tables: they stay in the file, and the clones that map it
  /// are charged for them alone. Takes its time; any thread.
  void unmap_pages() const noexcept;

  [[nodiscard]] std::uint64_t nb_kept() const noexcept { return nb_kept_; }
  /// Pages that were in the file before they came: somebody maps it without the preload library
  /// and touched them. Clones that read them until then had zeros.
  [[nodiscard]] std::uint64_t nb_overwritten() const noexcept { return nb_overwritten_; }
  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return memory_.size() / kPageSize; }
  [[nodiscard]] int file() const noexcept { return file_.get(); }
  /// Of the file: by it a guest says that it maps this one.
  [[nodiscard]] std::uint64_t inode() const noexcept { return inode_; }

 private:
  using Bits = std::vector<std::uint64_t>;

  KeptImage(UniqueFd file, UniqueFd uffd, std::span<std::byte> memory, std::uint64_t inode);

  static bool bit(const Bits& bits, Gfn page) noexcept {
    return (bits[page.value / 64] >> (page.value % 64) & 1U) != 0;
  }
  static void set(Bits& bits, Gfn page) noexcept {
    bits[page.value / 64] |= std::uint64_t{1} << (page.value % 64);
  }

  UniqueFd file_, uffd_;
  std::span<std::byte> memory_;
  std::string link_;  // made by publish()
  Bits kept_, zero_;
  std::uint64_t nb_kept_ = 0, nb_overwritten_ = 0, inode_;
};

}  // namespace snowfabric
