// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/housekeeping.hpp"

#include <cstring>
#include <utility>

#include <spdlog/spdlog.h>

#include "descriptor/page_list.hpp"

namespace snowfabric {

void Housekeeping::write(std::span<const PageRange> recorded) {
  const std::lock_guard lock{mutex_};
  due_.recorded.assign(recorded.begin(), recorded.end());
}

void Housekeeping::unmap_kept() {
  const std::lock_guard lock{mutex_};
  due_.unmap = true;
}

void Housekeeping::look() {
  doing_.recorded.clear();  // its memory is for the next record
  doing_.unmap = false;
  {
    const std::lock_guard lock{mutex_};
    std::swap(due_, doing_);
  }
  if (doing_.unmap) kept_->unmap_pages();
  if (doing_.recorded.empty()) return;
  if (auto ok = write_file(record_file_, to_page_list(doing_.recorded)); !ok)
    spdlog::error("{}: {}", ok.error().what, std::strerror(ok.error().errnum));
}

}  // namespace snowfabric
