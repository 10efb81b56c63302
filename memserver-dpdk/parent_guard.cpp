// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/parent_guard.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "xen-glue/frozen_domain.hpp"
#include "xen-glue/libxen_calls.hpp"
#include "xen-glue/nominated_ram.hpp"

namespace snowfabric {
namespace {

using Json = Qmp::Json;

constexpr const char* kName = "sf-guard";  // argv[0] and comm: not found as a memserver
constexpr const char* kTakesOver =
    "memserver did not give its parent back after a freeze; this does";
constexpr const char* kDomainKey = "xen domain";    // of what is undone
constexpr const char* kInPlaceKey = "is in place";  // 1: its memory will be
constexpr std::uint64_t kFrozen = 0;                // no number of pages
constexpr timeval kPatience{.tv_sec = 10, .tv_usec = 0};
constexpr useconds_t kLookAgainUs = 5000;
// The guard's descriptors, beside stdout and stderr.
constexpr int kControlFd = STDIN_FILENO, kQmpFd = 3, kChannelFd = 4, kFirstForeignFd = 5;

/// What posix_spawn() is to do.
struct SpawnPlan {
  SpawnPlan() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
};

/// Where it can be said at once: stderr may be a pipe that nobody reads, or a terminal that is
/// gone, and the parent needs its guard all the same.
void complain(const char* what, const char* why = "") noexcept {
  pollfd room{STDERR_FILENO, POLLOUT, 0};
  if (poll(&room, 1, 0) == 1) dprintf(STDERR_FILENO, "%s: %s%s\n", kName, what, why);
}

/// One byte, or the end. @return bytes, -1 with errno
ssize_t hear(int control) noexcept {
  for (char byte = 0;;)
    if (const ssize_t n = recv(control, &byte, 1, 0); n >= 0 || errno != EINTR) return n;
}

/// What QEMU sends goes nowhere, for it must not wait: until the end.
void drain(int channel) noexcept {
  std::array<std::byte, 65536> rest;
  for (;;) {
    const ssize_t n = recv(channel, rest.data(), rest.size(), 0);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) return;
  }
}

/// Without a thread QEMU may have to wait for ever, but it may as well have sent all.
std::thread start_to_drain(int channel) noexcept {
  try {
    return std::thread{drain, channel};
  } catch (const std::system_error& error) {
    complain("nobody takes what QEMU still sends: ", error.what());
    return {};
  }
}

bool has_ended(const std::string& migration) {
  constexpr std::array<std::string_view, 5> kEnds{"", "none", "completed", "failed", "cancelled"};
  return std::ranges::find(kEnds, migration) != kEnds.end();
}

/// @return as keep_guard; ETIMEDOUT: QEMU stalls
Result<void> set_back(Qmp& qmp, const Json& undo) {
  for (;;) {  // QEMU refuses all of it before
    const auto info = qmp.execute("query-migrate");
    if (!info) return std::unexpected(info.error());
    if (has_ended(text_of(*info, "status"))) break;
    usleep(kLookAgainUs);
  }
  Result<void> all;
  for (const Json& command : undo) {
    const auto done = qmp.execute(text_of(command, "execute"), command.value("arguments", Json{}));
    if (!done && done.error().errnum != EREMOTEIO) return std::unexpected(done.error());
    if (!done && all) all = std::unexpected(done.error());
  }
  return all;
}

}  // namespace

/// Neither a signal to our process group nor a terminal that closes ends it, and it holds none of
/// our descriptors: not those of EAL, and by no means a userfaultfd.
Result<pid_t> ParentGuard::spawn(std::span<const GivenFd> given, std::string undo) {
  SpawnPlan plan;
  std::vector<UniqueFd> above;  // all numbers given away, so that none is overwritten too early
  int errnum = 0;
  for (const auto [fd, number] : given) {
    above.emplace_back(fcntl(fd, F_DUPFD_CLOEXEC, kFirstForeignFd));
    if (errnum == 0)
      errnum = above.back()
                   ? posix_spawn_file_actions_adddup2(&plan.actions, above.back().get(), number)
                   : errno;
  }
  const int last = std::max(STDERR_FILENO, std::ranges::max(given, {}, &GivenFd::number).number);
  if (errnum == 0) errnum = posix_spawn_file_actions_addclosefrom_np(&plan.actions, last + 1);
  sigset_t all;
  sigfillset(&all);
  posix_spawnattr_setsigmask(&plan.attributes, &all);
  posix_spawnattr_setflags(&plan.attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  std::string name{kName};
  const std::array<char*, 3> args{name.data(), undo.data(), nullptr};
  pid_t pid = -1;
  if (errnum == 0)
    errnum =
        posix_spawn(&pid, "/proc/self/exe", &plan.actions, &plan.attributes, args.data(), environ);
  if (errnum != 0) return fail(errnum, "start a process that guards the parent");
  return pid;
}

Result<ParentGuard> ParentGuard::start(const Qmp& qmp, int channel, const Json& undo) {
  return start(std::vector<GivenFd>{{qmp.socket(), kQmpFd}, {channel, kChannelFd}}, undo);
}

Result<ParentGuard> ParentGuard::start(xen::DomId domain, xen::Keep keep) {
  return start(std::vector<GivenFd>{}, {{kDomainKey, static_cast<std::uint16_t>(domain)},
                                        {kInPlaceKey, keep == xen::Keep::kInPlace ? 1 : 0}});
}

Result<ParentGuard> ParentGuard::start(std::vector<GivenFd> given, const Json& undo) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail(errno, "socketpair for the parent's guard");
  ParentGuard guard{UniqueFd{ends[0]}};
  UniqueFd theirs{ends[1]};
  setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  given.push_back({theirs.get(), kControlFd});
  const auto pid = spawn(given, undo.dump());
  if (!pid) return std::unexpected(pid.error());
  guard.pid_ = *pid;
  theirs = UniqueFd{};
  // Its start takes CPU time that the parent's pause must not wait for.
  if (const ssize_t n = hear(guard.control_.get()); n != 1)
    return fail(n == 0 ? ECONNRESET : ETIMEDOUT,
                "the process that guards the parent does not start");
  return guard;
}

ParentGuard::~ParentGuard() {
  if (pid_ < 0) return;
  shutdown(control_.get(), SHUT_WR);
  wait();
}

void ParentGuard::expect_in_place(std::uint64_t nb_pages) noexcept {
  send(control_.get(), &nb_pages, sizeof nb_pages, MSG_NOSIGNAL);
}

void ParentGuard::expect_in_place_alone() noexcept {
  send(control_.get(), &kFrozen, sizeof kFrozen, MSG_NOSIGNAL);
}

void ParentGuard::dismiss() noexcept {
  if (pid_ < 0) return;
  send(control_.get(), "", 1, MSG_NOSIGNAL);
  wait();
}

/// If it takes longer it goes on without us.
void ParentGuard::wait() noexcept {
  const bool has_closed = hear(control_.get()) == 0;
  while (has_closed && waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

std::optional<int> guard_parent(std::span<char*> args) {
  if (args.size() != 2 || std::string_view{args[0]} != kName) return std::nullopt;
  prctl(PR_SET_NAME, kName);
  const Json undo = Json::parse(args[1], nullptr, false);
  if (!undo.is_array() && !undo.contains(kDomainKey)) return 2;
  const auto done =
      undo.is_array()
          ? keep_guard(UniqueFd{kControlFd}, UniqueFd{kQmpFd}, UniqueFd{kChannelFd}, undo)
          : keep_domain_guard(
                UniqueFd{kControlFd},
                xen::DomId{static_cast<std::uint16_t>(number_of(undo, kDomainKey))},
                number_of(undo, kInPlaceKey) != 0 ? xen::Keep::kInPlace : xen::Keep::kCopy);
  if (done) return 0;
  complain("the parent could not be set back: ",
           (done.error().what + ": " + std::strerror(done.error().errnum)).c_str());
  return 1;
}

namespace {

/// What its guard has been told of a domain.
struct DomainNews {
  bool dismissed = false;
  std::uint64_t nb_in_place = 0;
  bool is_frozen = false;
};

/// Until there is no more to come. One byte is the end of its work, eight are the pages in place,
/// or kFrozen.
DomainNews hear_of_domain(int control) noexcept {
  DomainNews news;
  for (std::uint64_t heard = 0;;) {
    const ssize_t n = recv(control, &heard, sizeof heard, 0);
    if (n < 0 && errno == EINTR) continue;
    news.dismissed = n == 1;
    if (n != sizeof heard) return news;
    if (heard == kFrozen)
      news.is_frozen = true;
    else
      news.nb_in_place = heard;
  }
}

}  // namespace

Result<void> keep_domain_guard(UniqueFd control, xen::DomId domain, xen::Keep keep) {
  const auto calls = xen::open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const xen::Domain parent{**calls, domain};
  std::optional<xen::ForeignPages> ring_page;
  const auto info = parent.info();
  const bool is_paged = !info || info->nb_paged_pages != 0;  // by somebody else, if so
  if (keep == xen::Keep::kInPlace && !is_paged)
    if (auto mapped = xen::DomainPager::map_ring_page(parent))
      ring_page.emplace(std::move(*mapped));
  send(control.get(), "", 1, MSG_NOSIGNAL);
  const DomainNews news = hear_of_domain(control.get());
  if (news.dismissed) return {};
  complain(kTakesOver);
  const xen::ForeignPages* const ring = ring_page ? &*ring_page : nullptr;
  if (news.is_frozen) return xen::NominatedRam::give_back_all(parent, news.nb_in_place, ring);
  if (news.nb_in_place != 0) return xen::give_back_in_place(parent, news.nb_in_place, ring);
  xen::give_back(parent);
  return {};
}

Result<void> keep_guard(UniqueFd control, UniqueFd qmp, UniqueFd channel, const Json& undo) {
  send(control.get(), "", 1, MSG_NOSIGNAL);
  if (hear(control.get()) == 1) return {};
  complain(kTakesOver);
  std::thread drainer = start_to_drain(channel.get());
  Qmp parent = Qmp::adopt(std::move(qmp));
  Result<void> done;
  do done = set_back(parent, undo);
  while (!done && done.error().errnum == ETIMEDOUT);
  shutdown(channel.get(), SHUT_RDWR);
  if (drainer.joinable()) drainer.join();
  return done;
}

}  // namespace snowfabric
