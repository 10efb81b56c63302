// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace snowfabric::sim {

/// What must never happen.
enum class Breach : std::uint8_t {
  kBytes,       ///< a page with wrong bytes, or one that is not in the image
  kTwice,       ///< a page over one that is there
  kBitmap,      ///< it says what is not so
  kHangs,       ///< a vCPU waits for ever
  kLate,        ///< or for too long
  kToldAbsent,  ///< a page cannot be had, though the server lives
  kFrames,      ///< that nobody accounts for
  kBounds,      ///< more in a table than fits
};

/// What of it did. The first few are kept in words.
class Judge {
 public:
  static constexpr std::size_t kMaxKept = 20;

  void broken(Breach kind, std::string what) {
    if (nb_broken_++ == 0) first_ = kind;
    if (broken_.size() < kMaxKept) broken_.push_back(std::move(what));
  }
  [[nodiscard]] bool ok() const noexcept { return nb_broken_ == 0; }
  [[nodiscard]] std::uint64_t nb_broken() const noexcept { return nb_broken_; }
  [[nodiscard]] Breach first() const noexcept { return first_; }  ///< @pre !ok()
  [[nodiscard]] const std::vector<std::string>& broken() const noexcept { return broken_; }

 private:
  std::uint64_t nb_broken_ = 0;
  Breach first_{};
  std::vector<std::string> broken_;
};

}  // namespace snowfabric::sim
