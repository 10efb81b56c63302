// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/parent_guard.hpp"

#include <fcntl.h>

#include <array>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/time.h>

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;

std::array<UniqueFd, 2> socket_pair() {
  std::array<int, 2> ends{};
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

/// A guard at work, and the ends of its channels: of the memserver's, of QEMU's.
struct ParentGuardTest : ::testing::Test {
  /// @param patience  of the guard with QEMU: tests in which it answers must not hang on it
  explicit ParentGuardTest(const timeval& patience = {.tv_sec = 30, .tv_usec = 0}) {
    auto control = socket_pair();
    auto qmp = socket_pair();
    auto channel = socket_pair();
    setsockopt(qmp[1].get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    memserver_ = std::move(control[0]);
    qemu_ = std::move(qmp[0]);
    stream_ = std::move(channel[0]);
    const Qmp::Json undo = {{{"execute", "cont"}}, {{"execute", "a"}, {"arguments", {{"b", 0}}}}};
    guard_ = std::thread{[this, undo](UniqueFd c, UniqueFd q, UniqueFd s) {
                           done_ = keep_guard(std::move(c), std::move(q), std::move(s), undo);
                         },
                         std::move(control[1]), std::move(qmp[1]), std::move(channel[1])};
    char ready = 1;
    EXPECT_EQ(recv(memserver_.get(), &ready, 1, 0), 1);
  }
  ~ParentGuardTest() override {
    if (guard_.joinable()) guard_.join();
  }
  void say(const std::string& text) const {
    EXPECT_EQ(send(qemu_.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  /// The next command. QEMU answers it with this member beside the command's id.
  Qmp::Json answer(const std::string& member, Qmp::Json value) {
    while (!heard_.contains('\n')) {
      std::array<char, 4096> piece{};
      const ssize_t n = recv(qemu_.get(), piece.data(), piece.size(), 0);
      if (n <= 0) return {};
      heard_.append(piece.data(), static_cast<std::size_t>(n));
    }
    const std::size_t end = heard_.find('\n');
    const Qmp::Json command = Qmp::Json::parse(heard_.substr(0, end));
    heard_.erase(0, end + 1);
    say(Qmp::Json{{member, std::move(value)}, {"id", command["id"]}}.dump() + "\n");
    return command;
  }
  std::string name_of_next(const char* status) {
    return answer("return", {{"status", status}})["execute"];
  }

  UniqueFd memserver_, qemu_, stream_;
  std::string heard_;
  std::thread guard_;
  Result<void> done_;
};

TEST_F(ParentGuardTest, ADismissedOneSaysNothing) {
  EXPECT_EQ(send(memserver_.get(), "", 1, 0), 1);
  guard_.join();
  EXPECT_TRUE(done_);
  char none = 0;
  EXPECT_EQ(recv(qemu_.get(), &none, 1, 0), 0);
}

TEST_F(ParentGuardTest, WhenMemserverEndsItWaitsForTheMigrationAndUndoesWhatWasChanged) {
  memserver_ = UniqueFd{};
  EXPECT_EQ(name_of_next("active"), "query-migrate");
  EXPECT_EQ(name_of_next("device"), "query-migrate");
  EXPECT_EQ(name_of_next("completed"), "query-migrate");
  EXPECT_EQ(answer("return", {})["execute"], "cont");
  const Qmp::Json last = answer("return", {});
  EXPECT_EQ(last["execute"], "a");
  EXPECT_EQ(last["arguments"], Qmp::Json({{"b", 0}}));
  guard_.join();
  EXPECT_TRUE(done_) << done_.error().what;
}

TEST_F(ParentGuardTest, ItTakesWhatQemuSendsMeanwhile) {
  memserver_ = UniqueFd{};
  const std::vector<char> much(8 << 20);  // more than any socket holds
  EXPECT_EQ(send(stream_.get(), much.data(), much.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(much.size()));
  EXPECT_EQ(name_of_next("completed"), "query-migrate");
  answer("return", {});
  answer("return", {});
  guard_.join();
  EXPECT_TRUE(done_);
}

TEST_F(ParentGuardTest, AnswersToMemserverAreNotTakenForItsOwn) {
  say("running\"}, \"id\": \"1-7\"}\n{\"return\": {\"status\": \"none\"}, \"id\": \"1-8\"}\n");
  memserver_ = UniqueFd{};
  EXPECT_EQ(name_of_next("active"), "query-migrate");
  EXPECT_EQ(name_of_next("none"), "query-migrate");
  answer("return", {});
  answer("return", {});
  guard_.join();
  EXPECT_TRUE(done_);
}

TEST_F(ParentGuardTest, WhatQemuRefusesDoesNotKeepItFromTheRest) {
  memserver_ = UniqueFd{};
  EXPECT_EQ(name_of_next("failed"), "query-migrate");
  EXPECT_EQ(answer("error", {{"desc", "no way"}})["execute"], "cont");
  EXPECT_EQ(answer("return", {})["execute"], "a");
  guard_.join();
  ASSERT_FALSE(done_);
  EXPECT_EQ(done_.error().errnum, EREMOTEIO);
  EXPECT_THAT(done_.error().what, HasSubstr("no way"));
}

struct ImpatientGuardTest : ParentGuardTest {
  ImpatientGuardTest() : ParentGuardTest{{.tv_sec = 0, .tv_usec = 50'000}} {}
};

TEST_F(ImpatientGuardTest, AQemuThatStallsIsWaitedFor) {
  memserver_ = UniqueFd{};
  usleep(120'000);  // more than the time-out of its socket, twice
  std::vector<std::string> commands;
  while (commands.empty() || commands.back() != "a") {
    commands.push_back(name_of_next("completed"));
    if (commands.back().empty()) break;
  }
  EXPECT_EQ(commands.back(), "a");
  guard_.join();
  EXPECT_TRUE(done_);
}

TEST_F(ParentGuardTest, AQemuThatIsGoneNeedsNothing) {
  memserver_ = UniqueFd{};
  qemu_ = UniqueFd{};
  guard_.join();
  EXPECT_FALSE(done_);
}

/// While it lives, stderr is another file; a write to a closed pipe is an error, as in a guard.
class StderrTo {
 public:
  explicit StderrTo(int fd) : before_{dup(STDERR_FILENO)}, handler_{std::signal(SIGPIPE, SIG_IGN)} {
    dup2(fd, STDERR_FILENO);
  }
  StderrTo(const StderrTo&) = delete;
  StderrTo& operator=(const StderrTo&) = delete;
  ~StderrTo() {
    dup2(before_.get(), STDERR_FILENO);
    static_cast<void>(std::signal(SIGPIPE, handler_));
  }

 private:
  UniqueFd before_;
  void (*handler_)(int);
};

struct StderrLostTest : ParentGuardTest {
  void set_back_with_stderr(int fd) {
    const StderrTo lost{fd};
    memserver_ = UniqueFd{};
    EXPECT_EQ(name_of_next("completed"), "query-migrate");
    EXPECT_EQ(answer("return", {})["execute"], "cont");
    answer("return", {});
    guard_.join();
    EXPECT_TRUE(done_);
  }
};

TEST_F(StderrLostTest, AClosedPipeDoesNotKeepItFromItsWork) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const UniqueFd writer{ends[1]};
  close(ends[0]);
  set_back_with_stderr(writer.get());
}

TEST_F(StderrLostTest, NorDoesAFullPipe) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const UniqueFd reader{ends[0]};
  const UniqueFd writer{ends[1]};
  fcntl(writer.get(), F_SETFL, O_NONBLOCK);
  const std::array<char, 4096> much{};
  while (write(writer.get(), much.data(), much.size()) > 0) {
  }
  fcntl(writer.get(), F_SETFL, 0);
  set_back_with_stderr(writer.get());
}

TEST_F(StderrLostTest, NorDoesAFullDisk) {
  const UniqueFd full{open("/dev/full", O_WRONLY | O_CLOEXEC)};
  set_back_with_stderr(full.get());
}

TEST(ParentGuard, OnlyAProcessOfItsNameIsOne) {
  for (const char* name : {"memserver-dpdk", "/usr/bin/sf-guard", ""}) {
    std::string program{name};
    std::string argument{"[]"};
    std::array<char*, 2> args{program.data(), argument.data()};
    EXPECT_FALSE(guard_parent(args)) << name;
  }
  EXPECT_FALSE(guard_parent({}));
}

}  // namespace
}  // namespace snowfabric::testing
