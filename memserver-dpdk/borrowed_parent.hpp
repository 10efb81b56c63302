// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <chrono>

#include "fabric/base/result.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/parent_guard.hpp"
#include "memserver-dpdk/qmp.hpp"

namespace snowfabric {

/// A parent's QEMU for the time of a freeze. What is changed of it is set back by give_back(); by a
/// ParentGuard if this object goes before that, or its process. Control path.
class BorrowedParent {
 public:
  using Clock = std::chrono::steady_clock;

  /// From here on of all migration capabilities only this one is on, and the bandwidth has no
  /// limit.
  /// @param qmp  outlives this object, and is of no use after it if it was not given back
  /// @return as Qmp::execute and ParentGuard::start
  static Result<BorrowedParent> borrow(Qmp& qmp, const char* capability);

  /// Stops the VM, if it runs. @return ECANCELED: somebody else stopped it, or let it run
  [[nodiscard]] Result<void> stop();
  /// When it was stopped.
  [[nodiscard]] Clock::time_point since() const noexcept { return since_; }
  /// Has QEMU send its state to channel().
  [[nodiscard]] Result<void> send_state();
  [[nodiscard]] int channel() const noexcept { return ours_.get(); }
  /// The VM runs on, if it ran before stop(). @return how long it stood still
  Result<std::chrono::microseconds> resume();
  /// After the end of the migration. What QEMU refuses now, or does not answer, stays with the
  /// guard.
  void give_back();

 private:
  BorrowedParent(Qmp& qmp, bool ran, Qmp::Json settings, UniqueFd ours, UniqueFd theirs,
                 ParentGuard guard)
      : qmp_{&qmp},
        ran_{ran},
        settings_(std::move(settings)),  // in braces g++ makes a list of one of it
        ours_{std::move(ours)},
        theirs_{std::move(theirs)},
        guard_{std::move(guard)} {}
  Qmp* qmp_;
  bool ran_;            // when it was borrowed
  Qmp::Json settings_;  // commands that set them back
  UniqueFd ours_, theirs_;
  ParentGuard guard_;
  Clock::time_point since_ = Clock::now();
};

}  // namespace snowfabric
