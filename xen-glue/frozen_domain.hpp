// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/base/xen_domain.hpp"
#include "xen-glue/domain.hpp"
#include "xen-glue/nominated_ram.hpp"

namespace snowfabric::xen {

/// Who serves RAM that is kept in place.
struct InPlace {
  std::function<void(std::uint64_t nb_pages)> begins;  ///< called before the first is nominated
  XenCalls* calls;  ///< for that RAM alone: another thread's. Borrowed
  /// Called in the pause: from the parent's first step on it waits for pages.
  std::function<Result<void>(std::unique_ptr<NominatedRam>)> serve;
};

struct FreezeOptions {
  std::optional<InPlace> in_place{};  ///< none: RAM is copied
  std::chrono::milliseconds suspend_timeout = std::chrono::seconds{20};
  std::chrono::milliseconds free_pages_timeout = std::chrono::seconds{5};
  /// Called with the pages of RAM and how many of them are copied for the first time.
  std::function<void(std::uint64_t nb_pages, std::uint64_t nb_copied)> progress{};
  const std::atomic<bool>* stop = nullptr;  ///< once set: gives up if the domain runs; borrowed
};

/// A parent domain's memory and state as they were at one instant.
struct FrozenDomain {
  /// A memfd of all RAM, page by gfn, that nothing can write any more; if it was kept in place, an
  /// empty one.
  UniqueFd memory;
  std::uint64_t nb_pages{};  ///< of RAM
  /// Pages whose place in `memory` means nothing: all zero, or given back by the domain. Ascending.
  std::vector<PageRange> zeros;
  DomainState state;
  std::chrono::steady_clock::time_point since{};  ///< when it was suspended
  std::chrono::microseconds suspend{};            ///< the guest took to suspend, running on
  std::chrono::microseconds pause{};              ///< from its suspend to its resume
  std::chrono::microseconds copy{};   ///< of all but free pages, while it ran: the first round
  std::uint64_t nb_pages_in_pause{};  ///< written since the last round, and so copied in the pause
  /// That the guest's agent called free when Xen noted already what is written.
  std::uint64_t nb_free_pages{};
  std::uint64_t nb_avoided_pages{};  ///< of these, in `zeros` because nothing was written to them
  std::string why_none_avoided{};    ///< empty, or why the guest could not be asked

  /// Copies RAM in rounds while the domain runs, each what was written in the one before; then asks
  /// the guest to suspend, copies the rest and the state, and lets it go on, also after an error.
  /// What the guest's agent says is free (guest_bitmap.hpp) is copied only if it is written then.
  /// Needs as much memory as the domain has. Or keeps RAM in place: nominates it in the pause,
  /// which takes the longer the more RAM there is; nobody else may page the domain. Source: the
  /// log-dirty rounds of xl's own migration, tools/libs/guest/xg_sr_save.c.
  /// @return ETIMEDOUT: it did not suspend; ECANCELED: stopped; ENODATA: a clone that lacks pages;
  ///         ENOTSUP: RAM that reaches the hole below 4 GiB, no PVH domain, or no 64-bit guest;
  ///         EBUSY: somebody pages it already;
  ///         EINVAL: xenstore does not say its size, or somebody else has Xen note what it writes
  ///         (a migration); or what a call reported
  [[nodiscard]] static Result<FrozenDomain> take(Domain domain, const FreezeOptions& options);
};

/// Undoes what a freeze that was broken off has left, as by SIGKILL: the domain runs, Xen notes
/// nothing for us and the guest's agent is asked nothing. A pause ends too: what is frozen ran
/// before. Takes 5 s at most. Does no harm to a domain that nobody freezes or migrates, or that is
/// gone.
void give_back(const Domain& domain);
/// The same for a freeze that keeps RAM in place, and for its memory while it is served: the domain
/// stands for some time, the longer the more RAM it has. See NominatedRam::give_back_all.
[[nodiscard]] Result<void> give_back_in_place(const Domain& domain, std::uint64_t nb_pages,
                                              const ForeignPages* ring_page);

}  // namespace snowfabric::xen
