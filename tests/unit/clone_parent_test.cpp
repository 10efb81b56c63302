// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/clone_parent.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <optional>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/unit/fake_qemu.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr pid_t kClone = 4711;

/// What is made of a memtap that answers so.
Result<bool> asked(const std::string& answer) {
  FakeServer memtap{[&](FakeServer& m) {
    EXPECT_EQ(m.hear().first, "[{\"complete\": 4711}]");
    m.say(answer);
  }};
  const std::atomic<bool> stop{false};
  return complete_clone(memtap.path(), kClone, stop, {});
}

Error error_of(const std::string& answer) {
  const auto known = asked(answer);
  return known ? Error{0, "no error"} : known.error();
}

TEST(CloneParent, AMemtapThatCompletesItIsWaitedFor) {
  EXPECT_TRUE(asked("{\"missing\": 100}\n{\"missing\": 3}\n{\"complete\": true}\n").value());
  EXPECT_TRUE(asked("{\"complete\": true}\n").value());
}

TEST(CloneParent, ShowsProgressWhereItIsTold) {
  FakeServer memtap{[](FakeServer& m) {
    m.hear();
    m.say("{\"missing\": 100}\n{\"missing\": 3}\n{\"complete\": true}\n");
  }};
  const UniqueFd shown{memfd_create("progress", MFD_CLOEXEC)};
  const std::atomic<bool> stop{false};
  EXPECT_TRUE(complete_clone(memtap.path(), kClone, stop, shown.get()).value());
  std::string text(1024, '\0');
  ASSERT_GT(pread(shown.get(), text.data(), text.size(), 0), 0);
  EXPECT_THAT(text, HasSubstr("complete process 4711: 100 pages"));
}

TEST(CloneParent, OneThatDoesNotKnowItHasNothingToComplete) {
  EXPECT_FALSE(asked("{\"unknown\": true}\n").value());
}

TEST(CloneParent, WhyItCannotIsSaidInItsWords) {
  const Error error = error_of("{\"missing\": 9}\n{\"error\": \"no \\u001b way\"}\n");
  EXPECT_EQ(error.errnum, EREMOTEIO);
  EXPECT_THAT(error.what, HasSubstr("process 4711"));
  EXPECT_THAT(error.what, HasSubstr("no ? way"));
}

TEST(CloneParent, AMemtapThatEndsIsAnError) {
  for (const char* before : {"", "{\"missing\": 9}\n", "{\"complete\": true}", "hello\n", "[]\n"})
    EXPECT_EQ(error_of(before).errnum, ECONNRESET) << before;
}

TEST(CloneParent, ASignalEndsTheWait) {
  std::atomic<bool> stop{false};
  FakeServer memtap{[&](FakeServer& m) {
    m.hear();
    stop = true;
    m.say("{\"missing\": 9}\n");
    m.hear();
  }};
  EXPECT_EQ(complete_clone(memtap.path(), kClone, stop, {}).error().errnum, ECANCELED);
}

TEST(CloneParent, ASocketWithoutAMemtapIsAnError) {
  const std::atomic<bool> stop{false};
  EXPECT_EQ(complete_clone("/nonexistent/memtap", kClone, stop, {}).error().errnum, ENOENT);
}

/// A process with a clone's environment.
class Clone {
 public:
  Clone() {
    std::string name{"cat"}, variable{"SF_CLONE_SOCKET=/run/memtap"};
    const std::array<char*, 2> args{name.data(), nullptr}, variables{variable.data(), nullptr};
    std::array<int, 2> ends{};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    UniqueFd theirs{ends[0]};
    ours_ = UniqueFd{ends[1]};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDOUT_FILENO);
    EXPECT_EQ(posix_spawnp(&pid_, "cat", &actions, nullptr, args.data(), variables.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
    theirs = UniqueFd{};  // if it does not run, there is nobody to wait for
    // The kernel shows an environment only some time after the spawn.
    char echo = 'x';
    EXPECT_EQ(send(ours_.get(), &echo, 1, MSG_NOSIGNAL), 1);
    EXPECT_EQ(read(ours_.get(), &echo, 1), 1);
  }
  Clone(const Clone&) = delete;
  Clone& operator=(const Clone&) = delete;
  ~Clone() {
    ours_ = UniqueFd{};  // it reads to the end
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  UniqueFd ours_;
  pid_t pid_ = -1;
};

/// What becomes of a QEMU that says this of its run state and of its migration.
std::optional<Error> refusal_of(const std::string& run, const std::string& migration) {
  const auto ok = asked_of_qemu({{"query-status", run}, {"query-migrate", migration}},
                                refuse_incomplete_clones);
  return ok ? std::nullopt : std::optional{ok.error()};
}

TEST(CloneParent, OneWhoseMigrationHasNotEndedIsRefused) {
  const std::string running = R"({"status": "running"})";
  for (const char* status : {"postcopy-active", "postcopy-paused", "postcopy-recover"}) {
    const auto error = refusal_of(running, fmt::format(R"({{"status": "{}"}})", status));
    ASSERT_TRUE(error) << status;
    EXPECT_EQ(error->errnum, EBUSY);
    EXPECT_THAT(error->what, HasSubstr("--memtap"));
  }
  EXPECT_EQ(refusal_of(R"({"status": "inmigrate"})", "{}")->errnum, EBUSY);
}

TEST(CloneParent, WhyACloneThatMapsItsImageIsRefusedIsExplained) {
  const Error refusal{EBUSY, "QEMU does not like it"};
  EXPECT_EQ(explained(refusal, getpid()).what, refusal.what);
  const Clone clone;
  const Error error = explained(refusal, clone.pid());
  EXPECT_EQ(error.errnum, EBUSY);
  EXPECT_THAT(error.what, AllOf(HasSubstr(refusal.what), HasSubstr("--memtap")));
}

TEST(CloneParent, AVmThatIsNoCloneOrACompleteOneIsNot) {
  EXPECT_FALSE(refusal_of(R"({"status": "running"})", "{}"));
  EXPECT_FALSE(refusal_of(R"({"status": "paused"})", R"({"status": "completed"})"));
}

}  // namespace
}  // namespace snowfabric::testing
