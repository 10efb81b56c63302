// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/xen_parent.hpp"

#include <chrono>
#include <utility>

#include "descriptor/xen_state.hpp"
#include "memserver-dpdk/parent_guard.hpp"
#include "memserver-dpdk/progress.hpp"
#include "xen-glue/frozen_domain.hpp"
#include "xen-glue/libxen_calls.hpp"

namespace snowfabric {
namespace {

/// A bar for the first copy of its memory.
class CopyProgress {
 public:
  explicit CopyProgress(std::optional<int> fd) : fd_{fd} {}
  void show(std::uint64_t nb_pages, std::uint64_t nb_copied) {
    if (!fd_) return;
    if (!bar_) bar_.emplace("freeze", nb_pages * kPageSize, *fd_);
    bar_->add((nb_copied - std::exchange(shown_, nb_copied)) * kPageSize);
    if (nb_copied == nb_pages) bar_.reset();
  }

 private:
  std::optional<int> fd_;
  std::optional<Progress> bar_;
  std::uint64_t shown_ = 0;
};

std::uint64_t us(std::chrono::microseconds time) {
  return static_cast<std::uint64_t>(time.count());
}

Descriptor describe(const xen::FrozenDomain& frozen, const XenFreezeOptions& options,
                    std::string name) {
  Descriptor descriptor;
  descriptor.image_id = options.image_id;
  descriptor.epoch = options.epoch;
  descriptor.group = group_address(options.image_id);
  descriptor.spaces = {{0, frozen.nb_pages}};
  descriptor.blocks = {{"ram", 0, frozen.nb_pages, frozen.nb_pages * kPageSize}};
  descriptor.sections = xen::sections_of(frozen.state);
  descriptor.zero_pages = frozen.zeros;
  descriptor.frozen_at_ns = wall_clock_ns();
  descriptor.parent_name = std::move(name);
  return descriptor;
}

}  // namespace

Result<FrozenParent> freeze_xen(const XenFreezeOptions& options, const std::atomic<bool>& stop) {
  const auto calls = xen::open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const auto domain = xen::find_domain(**calls, options.domain);
  if (!domain) return std::unexpected(domain.error());
  CopyProgress bar{options.progress_fd};
  const xen::FreezeOptions how{
      .progress = [&](std::uint64_t all, std::uint64_t done) { bar.show(all, done); },
      .stop = &stop};
  auto guard = ParentGuard::start(domain->id());
  if (!guard) return std::unexpected(guard.error());
  auto frozen = xen::FrozenDomain::take(*domain, how);
  guard->dismiss();
  if (!frozen) return std::unexpected(frozen.error());
  Descriptor descriptor =
      describe(*frozen, options, domain->store_read("name").value_or(options.domain));
  return FrozenParent{.kind = FreezeKind::kLogDirty,
                      .memory = FrozenMemory{std::move(frozen->memory)},
                      .descriptor = std::move(descriptor),
                      .since = frozen->since,
                      .pause = frozen->pause,
                      .zeros = std::move(frozen->zeros),
                      .nb_avoided_pages = frozen->nb_avoided_pages,
                      .nb_free_pages = frozen->nb_free_pages,
                      .details = {{"suspend_us", us(frozen->suspend)},
                                  {"copy_us", us(frozen->copy)},
                                  {"pause_pages", frozen->nb_pages_in_pause}},
                      .why_none_avoided = std::move(frozen->why_none_avoided)};
}

}  // namespace snowfabric
