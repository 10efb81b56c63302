// SPDX-License-Identifier: BSD-3-Clause
// The real kernel, in children: what a process has given up does not come back.
#include "pmd-config/sandbox.hpp"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "fabric/base/unique_fd.hpp"

namespace snowfabric {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// Runs `body` in a child that is in the sandbox. @return what it said on stderr, and how it ended
std::string in_sandbox(const std::function<void()>& body, Capabilities kept = 0) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    if (const auto ok = enter_sandbox(kept); !ok) {
      dprintf(STDERR_FILENO, "enter_sandbox: %s\n", ok.error().what.c_str());
      _exit(1);
    }
    body();
    _exit(0);
  }
  close(ends[1]);
  const UniqueFd said_by{ends[0]};
  std::string said;
  std::array<char, 4096> piece{};
  for (ssize_t n = 0; (n = read(said_by.get(), piece.data(), piece.size())) > 0;)
    said.append(piece.data(), static_cast<std::size_t>(n));
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? said : said + "status " + std::to_string(status);
}

/// In the child: an assertion whose failure is seen outside.
void require(bool holds, const char* what) {
  if (!holds) dprintf(STDERR_FILENO, "not so: %s (errno %d)\n", what, errno);
}
/// Forbidden, and nothing else than that.
template <class... Args>
void require_forbidden(long number, Args... args) {
  const std::uint64_t before = nb_forbidden_calls();
  const long result = syscall(number, args...);
  if (result != -1 || errno != EPERM || nb_forbidden_calls() != before + 1)
    dprintf(STDERR_FILENO, "call %ld returned %ld, errno %d\n", number, result, errno);
}

std::string status_of(std::string_view task, std::string_view field) {
  std::ifstream file{"/proc/self/task/" + std::string{task} + "/status"};
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(std::string{field} + ":\t")) return line.substr(field.size() + 2);
  return {};
}
Capabilities capabilities_of(pid_t task) {
  const std::string text = status_of(std::to_string(task), "CapEff");
  Capabilities set = ~Capabilities{0};
  std::from_chars(text.data(), text.data() + text.size(), set, 16);
  return set;
}

class SandboxTest : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef SNOWFABRIC_SANITIZE_THREAD
    GTEST_SKIP() << "the sanitizer's thread blocks all signals and cannot be sent one";
#endif
  }
};

TEST_F(SandboxTest, TheKernelSaysSo) {
  EXPECT_THAT(in_sandbox([] {
                require(status_of(std::to_string(getpid()), "NoNewPrivs") == "1",
                        "no new privileges");
                require(status_of(std::to_string(getpid()), "Seccomp") == "2", "a filter");
                require(is_sandboxed(), "says so");
              }),
              IsEmpty());
}

TEST_F(SandboxTest, ThreadsThatWereThereBeforeAreInItToo) {
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<pid_t> id{0};
    std::atomic<bool> go{false};
    std::atomic<bool> good{false};
    std::thread before{[&] {
      id = gettid();
      while (!go) poll(nullptr, 0, 5);  // which the signal interrupts
      good =
          syscall(SYS_unshare, CLONE_NEWUTS) == -1 && errno == EPERM && nb_forbidden_calls() == 1;
    }};
    while (id == 0) std::this_thread::yield();
    bool all = enter_sandbox(capability(CAP_KILL)).has_value();
    all = all && (capabilities_of(id) & ~capability(CAP_KILL)) == 0;
    all = all && status_of(std::to_string(id), "Seccomp") == "2";
    all = all && status_of(std::to_string(id), "NoNewPrivs") == "1";
    go = true;
    before.join();
    _exit(all && good ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(SandboxTest, KeepsTheCapabilitiesThatAreWantedAndNoOthers) {
  const Capabilities ours = capabilities_of(getpid());
  for (const Capabilities wanted : {Capabilities{0}, capability(CAP_KILL) | capability(CAP_BPF)})
    EXPECT_THAT(in_sandbox(
                    [=] {
                      require(capabilities_of(getpid()) == (wanted & ours), "capabilities");
                      require_forbidden(SYS_capset, nullptr, nullptr);
                    },
                    wanted),
                HasSubstr("forbids capset"));
}

TEST_F(SandboxTest, CallsThatAreNeverMadeAreRefusedAndCounted) {
  const std::string said = in_sandbox([] {
    std::array<const char*, 2> args{"/bin/true", nullptr};
    require_forbidden(SYS_execve, args[0], args.data(), nullptr);
    require_forbidden(SYS_execveat, -100, args[0], args.data(), nullptr, 0);
    require_forbidden(SYS_mount, "none", "/mnt", "tmpfs", 0, nullptr);
    require_forbidden(SYS_init_module, nullptr, 0, "");
    require_forbidden(SYS_bpf, 0, nullptr, 0);
    require_forbidden(SYS_keyctl, 0, 0, 0, 0, 0);
    require_forbidden(SYS_unshare, CLONE_NEWUSER);
    require_forbidden(SYS_setns, -1, 0);
    require_forbidden(SYS_setresuid, 65534, 65534, 65534);
    require_forbidden(SYS_open_by_handle_at, -1, nullptr, 0);
    require_forbidden(SYS_process_vm_readv, getppid(), nullptr, 0, nullptr, 0, 0);
    require_forbidden(SYS_io_uring_setup, 1, nullptr);
    require_forbidden(SYS_perf_event_open, nullptr, 0, -1, -1, 0);
  });
  EXPECT_THAT(said, AllOf(HasSubstr("forbids execve,"), HasSubstr("forbids setresuid,")));
  EXPECT_THAT(said, Not(AnyOf(HasSubstr("returned"), HasSubstr("status"))));
}

#ifndef SNOWFABRIC_SANITIZE_ADDRESS  // whose leak check does both
TEST_F(SandboxTest, NoProcessIsMadeAndNoneTraced) {
  const std::string said = in_sandbox([] {
    require_forbidden(SYS_fork);
    require_forbidden(SYS_vfork);
    require_forbidden(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr);
    require_forbidden(SYS_ptrace, PTRACE_ATTACH, getppid(), nullptr, nullptr);
    const bool is_child = fork() == 0;
    require(!is_child, "the C library makes one");
  });
  EXPECT_THAT(said, Not(AnyOf(HasSubstr("returned"), HasSubstr("not so"), HasSubstr("status"))));
}
#endif

TEST_F(SandboxTest, ThreadsAndTheSocketsThatDriversNeedAreMade) {
  EXPECT_THAT(in_sandbox([] {
                std::atomic<int> value{0};
                std::thread{[&] { value = 1; }}.join();
                require(value == 1, "a thread ran");
                for (const auto& [family, type] : {std::pair<int, int>{AF_UNIX, SOCK_STREAM},
                                                   {AF_UNIX, SOCK_SEQPACKET},
                                                   {AF_INET, SOCK_DGRAM},
                                                   {AF_NETLINK, SOCK_RAW}})
                  require(UniqueFd{socket(family, type | SOCK_CLOEXEC, 0)}.get() >= 0, "a socket");
              }),
              IsEmpty());
}

TEST_F(SandboxTest, OtherSocketsAreRefused) {
  const std::string said = in_sandbox([] {
    for (const auto& [family, type] : {std::pair<int, int>{AF_INET, SOCK_STREAM},
                                       {AF_INET6, SOCK_STREAM | SOCK_NONBLOCK},
                                       {AF_INET, SOCK_RAW | SOCK_CLOEXEC},
                                       {AF_PACKET, SOCK_RAW},
                                       {AF_ALG, SOCK_SEQPACKET},
                                       {AF_KEY, SOCK_RAW},
                                       {AF_VSOCK, SOCK_STREAM}})
      require_forbidden(SYS_socket, family, type, 0);
    // The kernel looks at the lower half alone.
    require_forbidden(SYS_socket, (1LL << 32) | AF_PACKET, SOCK_RAW, 0);
    require_forbidden(SYS_socket, (1LL << 32) | AF_INET, SOCK_STREAM, 0);
  });
  EXPECT_THAT(said, HasSubstr("forbids socket,"));
  EXPECT_THAT(said, Not(AnyOf(HasSubstr("returned"), HasSubstr("status"))));
}

TEST_F(SandboxTest, NoCodeIsAdded) {
  const std::string said = in_sandbox([] {
    require_forbidden(SYS_mmap, nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    require(page != MAP_FAILED, "memory");
    require_forbidden(SYS_mprotect, page, 4096, PROT_READ | PROT_EXEC);
    require(mprotect(page, 4096, PROT_READ) == 0, "its protection");
    require_forbidden(SYS_pkey_mprotect, page, 4096, PROT_READ | PROT_EXEC, -1);
    require_forbidden(SYS_shmget, IPC_PRIVATE, 0, IPC_CREAT);
    require_forbidden(SYS_shmat, -1, nullptr, SHM_EXEC);
  });
  EXPECT_THAT(said, Not(AnyOf(HasSubstr("returned"), HasSubstr("not so"), HasSubstr("status"))));
}

TEST_F(SandboxTest, ACallThatIsRepeatedIsReportedOnce) {
  const std::string said = in_sandbox([] {
    for (int i = 0; i < 3; ++i) require_forbidden(SYS_chroot, "/");
  });
  EXPECT_EQ(said,
            "the sandbox forbids chroot, which this program never calls once it has started: it "
            "may be under attack; --no-sandbox allows it\n");
}

TEST_F(SandboxTest, ThereAreNoCores) {
  EXPECT_THAT(in_sandbox([] {
                rlimit limit{};
                require(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_max <= 1, "no core");
              }),
              IsEmpty());
}

TEST_F(SandboxTest, ASignalToGiveUpThatComesLateAsksForNothing) {
  EXPECT_THAT(in_sandbox([] {
                raise(SIGRTMAX);
                require(nb_forbidden_calls() == 0, "nothing forbidden was called");
              }),
              IsEmpty());
}

TEST_F(SandboxTest, AThreadThatBlocksSignalsIsAnError) {
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<bool> blocks{false};
    std::thread deaf{[&] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);
      blocks = true;
      for (;;) pause();
    }};
    while (!blocks) std::this_thread::yield();
    const bool has_any = capabilities_of(getpid()) != 0;  // else there is nothing to give up
    const auto entered = enter_sandbox(0);
    _exit(has_any ? entered.has_value() || entered.error().errnum != EBUSY : !entered.has_value());
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace snowfabric
