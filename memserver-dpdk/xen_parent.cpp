// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/xen_parent.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "descriptor/xen_state.hpp"
#include "fabric/base/parse_number.hpp"
#include "memserver-dpdk/nominated_memory.hpp"
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

/// See XenCalls::paging_enable.
constexpr std::array kCannotBePaged{EBUSY, ENOSYS, ENODEV, EMLINK, EXDEV, EOPNOTSUPP};

/// Of this host, without swapping. @return 0: it does not say
std::uint64_t available_kib() {
  std::ifstream file{"/proc/meminfo"};
  for (std::string word; file >> word;)
    if (std::uint64_t kib = 0; word == "MemAvailable:" && file >> kib) return kib;
  return 0;
}

/// A copy, if there is room for all of its RAM.
xen::Keep choose(const xen::Domain& domain) {
  constexpr std::uint64_t kSpareKib = 65536;  // for memserver's own tables and dom0
  const auto size = domain.store_read("memory/static-max");
  const std::uint64_t kib = size ? parse_number(*size, 10).value_or(0) : 0;
  const std::uint64_t available = available_kib();
  const bool has_room = available == 0 || kib + kSpareKib <= available;
  return has_room ? xen::Keep::kCopy : xen::Keep::kInPlace;
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

/// Serves RAM in place until `memory` goes. The guard is dismissed with that.
/// @param begun  becomes true before the first page is nominated
Result<xen::InPlace> serve_in_place(const std::shared_ptr<ParentGuard>& guard,
                                    std::optional<int> progress_fd, bool& begun,
                                    std::shared_ptr<NominatedMemory>& memory) {
  auto opened = xen::open_libxen();
  if (!opened) return std::unexpected(opened.error());
  const std::shared_ptr<xen::XenCalls> calls = std::move(*opened);
  const auto serve = [calls, guard, progress_fd,
                      &memory](std::unique_ptr<xen::NominatedRam> ram) -> Result<void> {
    auto served =
        NominatedMemory::serve(calls, std::move(ram), [guard] { guard->dismiss(); }, progress_fd);
    if (!served) return std::unexpected(served.error());
    memory = std::move(*served);
    return {};
  };
  const auto begins = [guard, &begun](std::uint64_t nb_pages) {
    begun = true;
    guard->expect_in_place(nb_pages);
  };
  return xen::InPlace{.begins = begins, .calls = calls.get(), .serve = serve};
}

Result<FrozenParent> freeze(const xen::Domain& domain, const XenFreezeOptions& options,
                            xen::Keep keep, const std::atomic<bool>& stop) {
  auto started = ParentGuard::start(domain.id(), keep);
  if (!started) return std::unexpected(started.error());
  const auto guard = std::make_shared<ParentGuard>(std::move(*started));
  CopyProgress bar{options.progress_fd};
  xen::FreezeOptions how{
      .progress = [&](std::uint64_t all, std::uint64_t done) { bar.show(all, done); },
      .stop = &stop};
  bool begun = false;
  std::shared_ptr<NominatedMemory> in_place;
  if (keep == xen::Keep::kInPlace) {
    auto served = serve_in_place(guard, options.progress_fd, begun, in_place);
    if (!served) return std::unexpected(served.error());
    how.in_place = std::move(*served);
  }
  auto frozen = xen::FrozenDomain::take(domain, how);
  // After an error something of it may be nominated still: that is the guard's to find out.
  if (!begun) guard->dismiss();
  if (!frozen) return std::unexpected(frozen.error());
  if (begun) guard->expect_in_place_alone();
  return FrozenParent{
      .kind = in_place ? FreezeKind::kNominate : FreezeKind::kLogDirty,
      .memory = FrozenMemory{std::move(frozen->memory)},
      .nominated = std::move(in_place),
      .descriptor = describe(*frozen, options, domain.store_read("name").value_or(options.domain)),
      .since = frozen->since,
      .pause = frozen->pause,
      .zeros = std::move(frozen->zeros),
      .nb_avoided_pages = frozen->nb_avoided_pages,
      .nb_free_pages = frozen->nb_free_pages,
      .details = {{"suspend_us", us(frozen->suspend)},
                  {"copy_us", us(frozen->copy)},
                  {"pause_pages", frozen->nb_pages_in_pause},
                  {"in_place", keep == xen::Keep::kInPlace ? 1 : 0}},
      .why_none_avoided = std::move(frozen->why_none_avoided)};
}

}  // namespace

Result<FrozenParent> freeze_xen(const XenFreezeOptions& options, const std::atomic<bool>& stop) {
  const auto calls = xen::open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const auto domain = xen::find_domain(**calls, options.domain);
  if (!domain) return std::unexpected(domain.error());
  const xen::Keep keep = options.keep.value_or(choose(*domain));
  auto parent = freeze(*domain, options, keep, stop);
  // It cannot be paged, or somebody does already, as memtap a clone: then only a copy is left.
  const bool can_be_paged =
      parent || std::ranges::find(kCannotBePaged, parent.error().errnum) == kCannotBePaged.end();
  if (!can_be_paged && !options.keep && keep == xen::Keep::kInPlace)
    return freeze(*domain, options, xen::Keep::kCopy, stop);
  return parent;
}

}  // namespace snowfabric
