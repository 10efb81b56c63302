// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <vector>

namespace snowfabric {

enum class TouchOrder : std::uint8_t { kSequential, kRandom, kHotSet };

struct TouchPlan {
  TouchOrder order = TouchOrder::kSequential;
  std::uint64_t nb_pages = 0;     ///< of the image
  std::uint64_t limit_pages = 0;  ///< touch only the first so many of the order; 0 = all
  std::uint64_t seed = 1;         ///< of this guest
  std::uint64_t shared_seed = 1;  ///< of the hot set: the same for all guests of an image
  unsigned hot_percent = 25;      ///< of the image's pages
};

/// The pages a guest touches, each once. kHotSet: pages chosen by the shared seed, in an order all
/// guests share, and then the rest in an order of the guest's own.
/// @return page numbers
std::vector<std::uint64_t> touch_order(const TouchPlan& plan);

/// Splits an order over threads as vCPUs would share it: page by page.
std::vector<std::uint64_t> share_of(const std::vector<std::uint64_t>& order, unsigned thread,
                                    unsigned nb_threads);

}  // namespace snowfabric
