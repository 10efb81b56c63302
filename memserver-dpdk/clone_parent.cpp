// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/clone_parent.hpp"

#include <cerrno>
#include <chrono>

#include <fmt/format.h>

#include "fabric/base/frame_number.hpp"
#include "memserver-dpdk/line_socket.hpp"
#include "memserver-dpdk/process.hpp"
#include "memserver-dpdk/progress.hpp"

namespace snowfabric {
namespace {

using Clock = std::chrono::steady_clock;
using Json = Qmp::Json;

constexpr auto kStalled = std::chrono::minutes{1};
// A memtap says something every second; the whole is bounded by kStalled.
constexpr Patience kPatience{.silence = std::chrono::seconds{10}, .whole = std::chrono::hours{24}};
constexpr const char* kHelp = "name its memtap with --memtap, which completes it";

/// What was missing at first, and what is.
class Missing {
 public:
  Missing(pid_t clone, std::optional<int> progress_fd) : clone_{clone}, progress_fd_{progress_fd} {}

  /// @return ETIMEDOUT: it has been as much for too long
  Result<void> is(std::uint64_t nb_pages) {
    if (progress_fd_ && !progress_)
      progress_.emplace(fmt::format("complete process {}", clone_), nb_pages * kPageSize,
                        *progress_fd_);
    if (nb_pages < nb_pages_) {
      if (progress_ && nb_pages_ != kUnknown) progress_->add((nb_pages_ - nb_pages) * kPageSize);
      nb_pages_ = nb_pages;
      since_ = Clock::now();
    }
    if (Clock::now() - since_ < kStalled) return {};
    return fail(ETIMEDOUT,
                fmt::format("the clone, process {}, lacks {} pages, and none came for {} s", clone_,
                            nb_pages, std::chrono::seconds{kStalled}.count()));
  }

  void none() {
    if (progress_) progress_->add(nb_pages_ * kPageSize);
  }

 private:
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};
  pid_t clone_;
  std::optional<int> progress_fd_;
  std::optional<Progress> progress_;
  std::uint64_t nb_pages_ = kUnknown;
  Clock::time_point since_ = Clock::now();
};

}  // namespace

Result<bool> complete_clone(const std::string& memtap_path, pid_t clone,
                            const std::atomic<bool>& stop, std::optional<int> progress_fd) {
  auto memtap = LineSocket::connect(memtap_path, "the clone's memtap", kPatience);
  if (!memtap) return std::unexpected(memtap.error());
  if (auto ok = memtap->say(fmt::format("[{{\"complete\": {}}}]", clone)); !ok)
    return std::unexpected(ok.error());
  Missing missing{clone, progress_fd};
  while (!stop) {
    const auto line = memtap->next();
    if (!line) return std::unexpected(line.error());
    const Json said = Json::parse(*line, nullptr, false);
    if (const auto why = text_of(said, "error"); !why.empty())
      return fail(EREMOTEIO, fmt::format("the clone, process {}, cannot be completed: {}", clone,
                                         printable(why)));
    if (said == Json{{"unknown", true}}) return false;
    if (said == Json{{"complete", true}}) {
      missing.none();
      return true;
    }
    if (const auto nb_pages = number_of(said, "missing"); nb_pages != 0)
      if (auto ok = missing.is(nb_pages); !ok) return std::unexpected(ok.error());
  }
  return fail(ECANCELED, "stopped while the clone got its memory");
}

Result<void> refuse_incomplete_clones(Qmp& qmp) {
  const auto run = qmp.execute("query-status");
  if (!run) return std::unexpected(run.error());
  const auto incoming = qmp.execute("query-migrate");
  if (!incoming) return std::unexpected(incoming.error());
  if (text_of(*run, "status") == "inmigrate")
    return fail(EBUSY, "the VM is a clone that waits for its state still");
  if (const std::string status = text_of(*incoming, "status"); status.starts_with("postcopy-"))
    return fail(EBUSY,
                fmt::format("the VM is a clone without all its memory ({}): {}", status, kHelp));
  return {};
}

Error explained(const Error& refusal, pid_t qemu) {
  if (variable_of(qemu, "SF_CLONE_SOCKET").empty()) return refusal;
  return {refusal.errnum,
          fmt::format("{} (it is a clone that maps its memtap's image: {})", refusal.what, kHelp)};
}

}  // namespace snowfabric
