// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/sandbox.hpp"

#include <poll.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

namespace snowfabric {
namespace {

namespace fs = std::filesystem;

std::atomic<bool> sandboxed{false};
std::atomic<std::uint64_t> nb_forbidden{0};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "counted by a signal handler");

// --- capabilities ----------------------------------------------------------------------------

/// As capget(2) and capset(2) take them: of the calling thread.
struct CapabilitySets {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> words{};

  void allow(Capabilities all) noexcept {
    for (auto& word : words) {
      word = {.effective = static_cast<std::uint32_t>(all),
              .permitted = static_cast<std::uint32_t>(all),
              .inheritable = 0};
      all >>= 32U;
    }
  }
};
Capabilities kept_ones = 0;  // read by the handler; written before the first signal

/// Of the calling thread.
Capabilities permitted() noexcept {
  CapabilitySets sets;
  syscall(SYS_capget, &sets.header, sets.words.data());
  return Capabilities{sets.words[1].permitted} << 32U | sets.words[0].permitted;
}

/// A signal that was sent twice may come a second time when capset(2) is forbidden.
void on_give_up_signal(int) {
  const int before = errno;
  if ((permitted() & ~kept_ones) != 0) {
    CapabilitySets sets;
    sets.allow(kept_ones);
    syscall(SYS_capset, &sets.header, sets.words.data());
  }
  errno = before;
}

/// Threads that may do more than `kept`, by what the kernel says of them.
Result<std::vector<pid_t>> threads_beyond(Capabilities kept) try {
  std::vector<pid_t> threads;
  for (const auto& entry : fs::directory_iterator{"/proc/self/task"}) {
    std::ifstream status{entry.path() / "status"};
    for (std::string line; std::getline(status, line);) {
      constexpr std::string_view kStart = "CapPrm:\t";
      if (!line.starts_with(kStart)) continue;
      Capabilities its = 0;
      std::from_chars(line.data() + kStart.size(), line.data() + line.size(), its, 16);
      if ((its & ~kept) != 0) threads.push_back(std::stoi(entry.path().filename()));
    }
  }
  return threads;
} catch (const fs::filesystem_error& error) {
  return fail(error.code().value(), "look at the threads in /proc/self/task");
}

/// capset(2) is for the calling thread alone: the others do it in the handler of a signal, which
/// stays.
Result<void> give_up_capabilities(Capabilities kept) {
  constexpr int kMostTries = 2000;  // not a time: the process may be stopped meanwhile
  kept_ones = kept;
  struct sigaction action{};
  action.sa_handler = on_give_up_signal;
  action.sa_flags = SA_RESTART;
  if (sigaction(SIGRTMAX, &action, nullptr) != 0) return fail(errno, "sigaction SIGRTMAX");
  for (int tries = 0;; ++tries) {
    const auto threads = threads_beyond(kept);
    if (!threads) return std::unexpected(threads.error());
    if (threads->empty()) return {};
    if (tries == kMostTries)
      return fail(EBUSY, fmt::format("threads {} keep their capabilities: they block signals",
                                     fmt::join(*threads, ", ")));
    for (const pid_t thread : *threads) tgkill(getpid(), thread, SIGRTMAX);
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
}

// --- system calls ----------------------------------------------------------------------------

#ifdef SNOWFABRIC_SANITIZE_ADDRESS
constexpr bool kLeakCheck = true;  // at the exit a process made by clone(2) traces this one
#else
constexpr bool kLeakCheck = false;
#endif

/// One that is forbidden, whatever its arguments or by some of them.
struct Call {
  const char* name;
  int number = __NR_SCMP_ERROR;  // resolved before the filter is there
  std::atomic<bool> reported{false};
};

Call calls[]{
    // Other programs and processes.
    {"execve"},
    {"execveat"},
    {"fork"},
    {"vfork"},
    {"clone"},
    {"ptrace"},
    {"process_vm_readv"},
    {"process_vm_writev"},
    {"process_madvise"},
    {"pidfd_getfd"},
    {"kcmp"},
    // Code that was not there at the start.
    {"mmap"},
    {"mprotect"},
    {"pkey_mprotect"},
    {"shmget"},
    {"shmat"},  // with SHM_EXEC. Of drivers' libraries libmlx5 alone has it, to set queues up
    // Who it is, and what it sees.
    {"setuid"},
    {"setgid"},
    {"setreuid"},
    {"setregid"},
    {"setresuid"},
    {"setresgid"},
    {"setfsuid"},
    {"setfsgid"},
    {"setgroups"},
    {"capset"},
    {"unshare"},
    {"setns"},
    {"chroot"},
    {"pivot_root"},
    {"personality"},
    // Mounts, devices, and files past their folders.
    {"mount"},
    {"umount2"},
    {"open_tree"},
    {"move_mount"},
    {"fsopen"},
    {"fsconfig"},
    {"fsmount"},
    {"fspick"},
    {"mount_setattr"},
    {"mknod"},
    {"mknodat"},
    {"open_by_handle_at"},
    {"quotactl"},
    {"quotactl_fd"},
    {"swapon"},
    {"swapoff"},
    {"acct"},
    // The kernel.
    {"init_module"},
    {"finit_module"},
    {"delete_module"},
    {"kexec_load"},
    {"kexec_file_load"},
    {"bpf"},
    {"perf_event_open"},
    {"reboot"},
    {"syslog"},
    {"iopl"},
    {"ioperm"},
    {"modify_ldt"},
    {"add_key"},
    {"request_key"},
    {"keyctl"},
    // What a ring does passes no filter.
    {"io_uring_setup"},
    {"io_uring_enter"},
    {"io_uring_register"},
    // The host's clock and name.
    {"settimeofday"},
    {"clock_settime"},
    {"clock_adjtime"},
    {"adjtimex"},
    {"sethostname"},
    {"setdomainname"},
    // Networks beside the port's.
    {"socket"},
};

/// Only what a signal handler may do. Not if nobody reads stderr: a poll loop must not wait.
void report(Call& call) noexcept {
  if (call.reported.exchange(true)) return;
  pollfd room{STDERR_FILENO, POLLOUT, 0};
  if (poll(&room, 1, 0) != 1) return;
  for (const std::string_view part :
       {std::string_view{"the sandbox forbids "}, std::string_view{call.name},
        std::string_view{", which this program never calls once it has started: it may be under "
                         "attack; --no-sandbox allows it\n"}}) {
    [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, part.data(), part.size());
  }
}

/// The call was not made; in its place it returns EPERM.
void on_forbidden_call(int, siginfo_t* info, void* context) {
  constexpr int kBySeccomp = 1;  // SYS_SECCOMP, which glibc does not name
  if (info->si_code != kBySeccomp) return;
  const int before = errno;
  nb_forbidden.fetch_add(1, std::memory_order_relaxed);
  const auto call = std::ranges::find(calls, info->si_syscall, &Call::number);
  if (call != std::end(calls)) report(*call);
  static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RAX] = -EPERM;
  errno = before;
}

struct FilterFree {
  void operator()(void* filter) const noexcept { seccomp_release(filter); }
};
using Filter = std::unique_ptr<void, FilterFree>;

constexpr scmp_arg_cmp has_flag(unsigned argument, std::uint64_t flag) {
  return {.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = flag, .datum_b = flag};
}
constexpr scmp_arg_cmp lacks_flag(unsigned argument, std::uint64_t flag) {
  return {.arg = argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = flag, .datum_b = 0};
}
constexpr scmp_arg_cmp is(unsigned argument, scmp_compare op, std::uint64_t value) {
  return {.arg = argument, .op = op, .datum_a = value, .datum_b = 0};
}

/// Of socket(2). Drivers ask for interfaces by netlink and by datagram sockets.
std::vector<std::vector<scmp_arg_cmp>> forbidden_sockets() {
  std::vector<std::vector<scmp_arg_cmp>> rules{{is(0, SCMP_CMP_GT, AF_NETLINK)}};
  for (const int family : {AF_INET, AF_INET6})
    for (const int type : {SOCK_STREAM, SOCK_RAW})
      rules.push_back({is(0, SCMP_CMP_EQ, static_cast<std::uint64_t>(family)),
                       {.arg = 1,
                        .op = SCMP_CMP_MASKED_EQ,
                        .datum_a = 0xf,  // SOCK_TYPE_MASK of the kernel
                        .datum_b = static_cast<std::uint64_t>(type)}});
  for (int family = AF_AX25; family < AF_NETLINK; ++family)
    if (family != AF_INET6)
      rules.push_back({is(0, SCMP_CMP_EQ, static_cast<std::uint64_t>(family))});
  return rules;
}

/// Arguments with which a call is forbidden, any rule of several; {{}}: with whichever.
std::vector<std::vector<scmp_arg_cmp>> rules_of(std::string_view name, Capabilities kept) {
  if (name == "clone") {  // threads it makes
    if (kLeakCheck) return {};
    return {{lacks_flag(0, CLONE_THREAD)}};
  }
  if (name == "ptrace" && kLeakCheck) return {};
  if (name == "bpf" && (kept & capability(CAP_BPF)) != 0) return {};
  if (name == "mmap" || name == "mprotect" || name == "pkey_mprotect")
    return {{has_flag(2, PROT_EXEC)}};
  if (name == "socket") return forbidden_sockets();
  return {{}};
}

/// @return a negative errno, 0: done
int add_rules(void* filter, Capabilities kept) {
  for (Call& call : calls) {
    call.number = seccomp_syscall_resolve_name(call.name);
    for (const auto& rule : rules_of(call.name, kept))
      if (const int status = seccomp_rule_add_array(
              filter, SCMP_ACT_TRAP, call.number, static_cast<unsigned>(rule.size()), rule.data());
          status != 0)
        return status;
  }
  // Its flags lie in memory, where no filter sees them. The C library then takes clone(2).
  return seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0, nullptr);
}

Result<void> forbid_calls(Capabilities kept) {
  struct sigaction action{};
  action.sa_sigaction = on_forbidden_call;
  action.sa_flags = SA_SIGINFO;
  if (sigaction(SIGSYS, &action, nullptr) != 0) return fail(errno, "sigaction SIGSYS");
  const Filter filter{seccomp_init(SCMP_ACT_ALLOW)};
  if (filter == nullptr) return fail(ENOMEM, "seccomp_init");
  constexpr unsigned kAllThreads = 1, kBySearch = 2, kSpeculate = 1;
  if (const int status = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, kAllThreads);
      status != 0)
    return fail(-status, "seccomp_attr_set SCMP_FLTATR_CTL_TSYNC");
  seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);  // as by int 0x80
  seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, kBySearch);
  // Before 5.16 a filter slows its process down, against others' code in it: there is none here.
  seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_SSB, kSpeculate);
  if (const int status = add_rules(filter.get(), kept); status != 0)
    return fail(-status, "seccomp_rule_add_array");
  if (const int status = seccomp_load(filter.get()); status != 0)
    return fail(-status, "seccomp_load");
  return {};
}

/// 1, not 0: whatever the limit, a program that core_pattern names gets the core, but with that.
Result<void> forbid_cores() {
  constexpr rlimit kNone{.rlim_cur = 1, .rlim_max = 1};
  if (setrlimit(RLIMIT_CORE, &kNone) == 0 || errno == EPERM) return {};  // it is 0 already
  return fail(errno, "setrlimit RLIMIT_CORE");
}

}  // namespace

Result<Capabilities> enter_sandbox(Capabilities wanted) {
  const Capabilities kept = wanted & permitted();
  Result<void> done = forbid_cores();
  if (done) done = give_up_capabilities(kept);
  if (done) done = forbid_calls(kept);
  if (!done) return std::unexpected(done.error());
  sandboxed = true;
  return kept;
}

bool is_sandboxed() noexcept { return sandboxed; }

std::uint64_t nb_forbidden_calls() noexcept { return nb_forbidden.load(std::memory_order_relaxed); }

}  // namespace snowfabric
