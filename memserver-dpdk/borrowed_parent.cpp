// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/borrowed_parent.hpp"

#include <array>
#include <cerrno>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <sys/socket.h>

namespace snowfabric {
namespace {

using Json = Qmp::Json;

constexpr const char* kFdName = "snowfabric";
constexpr const char* kBandwidth = "max-bandwidth";
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 40U;  // bytes a second

Json command(const char* name, Json arguments = Json::object()) {
  return {{"execute", name}, {"arguments", std::move(arguments)}};
}

/// Commands for the time of a freeze, and those that undo them.
struct Settings {
  Json now = Json::array(), before = Json::array();
};

/// Another one that is on may bar ours, leave out memory, or hold the migration up.
Result<void> plan_capabilities(Qmp& qmp, const std::string& only, Settings& settings) {
  const auto all = qmp.execute("query-migrate-capabilities");
  if (!all) return std::unexpected(all.error());
  Json now = Json::array();
  Json before = Json::array();
  bool is_known = false;
  for (const Json& capability : *all) {
    const std::string name = text_of(capability, "capability");
    is_known = is_known || name == only;
    const bool on = capability.is_object() && capability.value("state", Json{}) == true;
    if (on == (name == only)) continue;
    now.push_back({{"capability", name}, {"state", !on}});
    before.push_back({{"capability", name}, {"state", on}});
  }
  if (!is_known) return fail(ENOTSUP, fmt::format("this QEMU has no capability {}", only));
  constexpr const char* kSet = "migrate-set-capabilities";
  settings.now.push_back(command(kSet, {{"capabilities", std::move(now)}}));
  settings.before.push_back(command(kSet, {{"capabilities", std::move(before)}}));
  return {};
}

Result<void> plan_bandwidth(Qmp& qmp, Settings& settings) {
  const auto parameters = qmp.execute("query-migrate-parameters");
  if (!parameters) return std::unexpected(parameters.error());
  constexpr const char* kSet = "migrate-set-parameters";
  settings.now.push_back(command(kSet, {{kBandwidth, kUnlimited}}));
  if (const auto found = parameters->find(kBandwidth); found != parameters->end())
    settings.before.push_back(command(kSet, {{kBandwidth, *found}}));
  return {};
}

Result<void> say(Qmp& qmp, const Json& commands) {
  for (const Json& c : commands)
    if (auto ok = qmp.execute(text_of(c, "execute"), c["arguments"]); !ok)
      return std::unexpected(ok.error());
  return {};
}

Result<bool> runs(Qmp& qmp) {
  const auto status = qmp.execute("query-status");
  if (!status) return std::unexpected(status.error());
  return text_of(*status, "status") == "running";
}

}  // namespace

Result<BorrowedParent> BorrowedParent::borrow(Qmp& qmp, const char* capability) {
  Settings settings;
  if (auto ok = plan_capabilities(qmp, capability, settings); !ok)
    return std::unexpected(ok.error());
  if (auto ok = plan_bandwidth(qmp, settings); !ok) return std::unexpected(ok.error());
  const auto ran = runs(qmp);
  if (!ran) return std::unexpected(ran.error());
  Json undo = settings.before;
  if (*ran) undo.insert(undo.begin(), command("cont"));
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail(errno, "socketpair for the parent's memory");
  UniqueFd ours{ends[0]};
  UniqueFd theirs{ends[1]};
  auto guard = ParentGuard::start(qmp, ours.get(), undo);
  if (!guard) return std::unexpected(guard.error());
  BorrowedParent parent{
      qmp, *ran, std::move(settings.before), std::move(ours), std::move(theirs), std::move(*guard)};
  if (auto ok = say(qmp, settings.now); !ok) return std::unexpected(ok.error());
  return parent;
}

Result<void> BorrowedParent::stop() {
  const auto runs_now = runs(*qmp_);
  if (!runs_now) return std::unexpected(runs_now.error());
  if (*runs_now != ran_) {
    give_back();  // else the guard would let a VM run that somebody wants to stand
    return fail(ECANCELED, "somebody else stopped the VM, or let it run, amid its freeze");
  }
  since_ = Clock::now();
  if (!ran_) return {};
  if (auto ok = qmp_->execute("stop"); !ok) return std::unexpected(ok.error());
  return {};
}

Result<void> BorrowedParent::send_state() {
  const UniqueFd theirs{std::move(theirs_)};  // then QEMU's is the only one
  if (auto ok = qmp_->execute("getfd", {{"fdname", kFdName}}, theirs.get()); !ok)
    return std::unexpected(ok.error());
  if (auto ok = qmp_->execute("migrate", {{"uri", fmt::format("fd:{}", kFdName)}}); !ok)
    return std::unexpected(ok.error());
  return {};
}

Result<std::chrono::microseconds> BorrowedParent::resume() {
  if (ran_)
    if (auto ok = qmp_->execute("cont"); !ok) return std::unexpected(ok.error());
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since_);
}

void BorrowedParent::give_back() {
  if (say(*qmp_, settings_)) guard_.dismiss();
}

}  // namespace snowfabric
