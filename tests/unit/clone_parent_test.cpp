// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/clone_parent.hpp"

#include <optional>

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/unit/fake_server.hpp"

namespace snowfabric::testing {
namespace {

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

/// What becomes of a QEMU that says this of its run state and of its migration.
std::optional<Error> refusal_of(const std::string& run, const std::string& migration) {
  FakeServer qemu{[&](FakeServer& q) {
    q.say("{\"QMP\": {}}\n");
    for (const std::string& answer : {std::string{"{}"}, run, migration}) {
      q.hear();
      q.say("{\"return\": " + answer + "}\n");
    }
  }};
  auto qmp = Qmp::connect(qemu.path());
  EXPECT_TRUE(qmp) << qmp.error().what;
  const auto ok = refuse_incomplete_clones(*qmp);
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

TEST(CloneParent, AVmThatIsNoCloneOrACompleteOneIsNot) {
  EXPECT_FALSE(refusal_of(R"({"status": "running"})", "{}"));
  EXPECT_FALSE(refusal_of(R"({"status": "paused"})", R"({"status": "completed"})"));
}

}  // namespace
}  // namespace snowfabric::testing
