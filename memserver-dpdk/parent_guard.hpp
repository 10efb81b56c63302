// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/qmp.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric {

/// A process that sets a parent back to what it was before a freeze, if the process that freezes it
/// ends too early, by SIGKILL for instance. Of a QEMU it takes what is still sent (a QEMU 7.2 whose
/// background snapshot is broken off hangs), waits for the end of the migration, and says the
/// commands it was given; a domain of Xen: see xen::give_back and give_back_in_place. No signal but
/// SIGKILL ends it, and it waits for a QEMU that stalls.
class ParentGuard {
 public:
  /// Starts this program's file again, as guard_parent(). Any thread.
  /// @param channel  from which QEMU's migration stream comes
  /// @param undo     an array of QMP commands, as QMP has them
  /// @return what the call named reported; ETIMEDOUT, ECONNRESET: it does not come up
  static Result<ParentGuard> start(const Qmp& qmp, int channel, const Qmp::Json& undo);
  /// Of a Xen domain. @param keep  of the freeze; it is not paged yet. @return as above
  static Result<ParentGuard> start(xen::DomId domain, xen::Keep keep);

  ParentGuard(ParentGuard&& from) noexcept
      : control_{std::move(from.control_)}, pid_{std::exchange(from.pid_, -1)} {}
  ParentGuard& operator=(ParentGuard&&) = delete;
  /// Unless it was dismissed it now does its work. Waits for that, but no longer than 10 s.
  ~ParentGuard();

  /// From now on pages of its Xen domain are nominated: they too are to be given back.
  void expect_in_place(std::uint64_t nb_pages) noexcept;
  /// The freeze is over: nothing but these pages is to be given back.
  void expect_in_place_alone() noexcept;
  /// There is nothing to set back any more. No harm a second time.
  void dismiss() noexcept;

 private:
  /// One of our descriptors, and its number there.
  struct GivenFd {
    int fd, number;
  };
  explicit ParentGuard(UniqueFd control) : control_{std::move(control)} {}
  static Result<ParentGuard> start(std::vector<GivenFd> given, const Qmp::Json& undo);
  static Result<pid_t> spawn(std::span<const GivenFd> given, std::string undo);
  void wait() noexcept;
  UniqueFd control_;  // its end, or one byte first, is what the guard waits for
  pid_t pid_ = -1;
};

/// What main() does first of all. @return the exit status, if this process is a guard
[[nodiscard]] std::optional<int> guard_parent(std::span<char*> args);

/// The guard's work. Blocks until it was dismissed, or all is set back, or QEMU is gone.
/// @param control  the other end of a ParentGuard's
/// @return ECONNRESET and the like: QEMU is gone; EREMOTEIO: QEMU refused one of `undo`, with its
///         words, and got the others
[[nodiscard]] Result<void> keep_guard(UniqueFd control, UniqueFd qmp, UniqueFd channel,
                                      const Qmp::Json& undo);

/// The same for a domain of Xen. @return as xen::open_libxen and xen::give_back_in_place
[[nodiscard]] Result<void> keep_domain_guard(UniqueFd control, xen::DomId domain, xen::Keep keep);

}  // namespace snowfabric
