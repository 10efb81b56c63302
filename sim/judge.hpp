// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace snowfabric::sim {

/// What must never happen, and did. The first few are kept in words.
class Judge {
 public:
  static constexpr std::size_t kMaxKept = 20;

  void broken(std::string what) {
    ++nb_broken_;
    if (broken_.size() < kMaxKept) broken_.push_back(std::move(what));
  }
  [[nodiscard]] bool ok() const noexcept { return nb_broken_ == 0; }
  [[nodiscard]] std::uint64_t nb_broken() const noexcept { return nb_broken_; }
  [[nodiscard]] const std::vector<std::string>& broken() const noexcept { return broken_; }

 private:
  std::uint64_t nb_broken_ = 0;
  std::vector<std::string> broken_;
};

}  // namespace snowfabric::sim
