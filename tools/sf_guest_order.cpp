// SPDX-License-Identifier: BSD-3-Clause
#include "tools/sf_guest_order.hpp"

#include <algorithm>
#include <numeric>
#include <random>

namespace snowfabric {

std::vector<std::uint64_t> touch_order(const TouchPlan& plan) {
  std::vector<std::uint64_t> pages(plan.nb_pages);
  std::iota(pages.begin(), pages.end(), std::uint64_t{0});
  std::mt19937_64 own{plan.seed};
  if (plan.order == TouchOrder::kRandom) std::ranges::shuffle(pages, own);
  if (plan.order == TouchOrder::kHotSet) {
    std::mt19937_64 shared{plan.shared_seed};
    std::ranges::shuffle(pages, shared);
    const std::uint64_t nb_hot = plan.nb_pages * plan.hot_percent / 100;
    std::shuffle(pages.begin() + static_cast<std::ptrdiff_t>(nb_hot), pages.end(), own);
  }
  if (plan.limit_pages > 0 && plan.limit_pages < pages.size()) pages.resize(plan.limit_pages);
  return pages;
}

std::vector<std::uint64_t> share_of(const std::vector<std::uint64_t>& order, unsigned thread,
                                    unsigned nb_threads) {
  std::vector<std::uint64_t> share;
  share.reserve(order.size() / nb_threads + 1);
  for (std::size_t i = thread; i < order.size(); i += nb_threads) share.push_back(order[i]);
  return share;
}

}  // namespace snowfabric
