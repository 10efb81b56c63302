// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/qmp.hpp"

#include <unistd.h>

#include <array>
#include <atomic>
#include <optional>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/unit/fake_server.hpp"

namespace snowfabric::testing {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view kGreeting = R"({"QMP": {"version": {}, "capabilities": []}})"
                                       "\n";

Qmp::Json json_of(const std::string& text) { return Qmp::Json::parse(text, nullptr, false); }

void greet(FakeServer& qemu) {
  qemu.say(kGreeting);
  EXPECT_EQ(json_of(qemu.hear().first)["execute"], "qmp_capabilities");
  qemu.say("{\"return\": {}}\n");
}

/// The error of a command that this QEMU answers so, or nothing.
std::optional<Error> error_of(const std::string& answer) {
  FakeServer qemu{[&](FakeServer& q) {
    greet(q);
    q.hear();
    if (!answer.empty()) q.say(answer);
  }};
  auto qmp = Qmp::connect(qemu.path(), 2s);
  EXPECT_TRUE(qmp);
  const auto result = qmp->execute("stop");
  return result ? std::nullopt : std::optional{result.error()};
}

TEST(Qmp, ACommandsAnswerIsReturnedAndEventsBeforeItArePassedOver) {
  FakeServer qemu{[](FakeServer& q) {
    greet(q);
    const auto [text, fd] = q.hear();
    const Qmp::Json command = json_of(text);
    EXPECT_EQ(command["execute"], "query-name");
    EXPECT_EQ(command["arguments"]["a"], 1);
    EXPECT_EQ(fd.get(), -1);
    q.say("{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n{\"return\": ");
    q.say("{\"name\": \"vm\"}}\n");
  }};
  auto qmp = Qmp::connect(qemu.path());
  ASSERT_TRUE(qmp) << qmp.error().what;
  EXPECT_EQ(qmp->pid(), getpid());
  const auto answer = qmp->execute("query-name", {{"a", 1}});
  ASSERT_TRUE(answer) << answer.error().what;
  EXPECT_EQ((*answer)["name"], "vm");
}

TEST(Qmp, WhenTheVmStoppedIsWhatItsLastSuchEventSays) {
  FakeServer qemu{[](FakeServer& q) {
    greet(q);
    q.hear();
    q.say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 0}}\n");
    q.say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 5, \"microseconds\": 20}}\n");
    q.say("{\"event\": \"RESUME\", \"timestamp\": {\"seconds\": 6, \"microseconds\": 0}}\n");
    q.say("{\"return\": {}}\n");
  }};
  auto qmp = Qmp::connect(qemu.path());
  ASSERT_TRUE(qmp) << qmp.error().what;
  EXPECT_EQ(qmp->stopped_at_ns(), 0U);
  EXPECT_TRUE(qmp->execute("query-migrate"));
  EXPECT_EQ(qmp->stopped_at_ns(), 5'000'020'000U);
}

TEST(Qmp, ADescriptorGoesWithItsCommand) {
  FakeServer qemu{[](FakeServer& q) {
    greet(q);
    const auto [text, fd] = q.hear();
    EXPECT_GE(fd.get(), 0);
    struct stat st{};
    EXPECT_EQ(fstat(fd.get(), &st), 0);
    EXPECT_TRUE(S_ISFIFO(st.st_mode));
    q.say("{\"return\": {}}\n");
  }};
  auto qmp = Qmp::connect(qemu.path());
  ASSERT_TRUE(qmp);
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  EXPECT_TRUE(qmp->execute("getfd", {{"fdname", "x"}}, ends[0]));
  close(ends[0]);
  close(ends[1]);
}

TEST(Qmp, ARefusalCarriesQemusOwnWords) {
  const auto error = error_of("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no way\"}}\n");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->errnum, EREMOTEIO);
  EXPECT_EQ(error->what, "QEMU refused stop: no way");
  for (const char* odd : {"{\"error\": 7}\n", "{\"error\": {\"desc\": 7}}\n"})
    EXPECT_EQ(error_of(odd)->what, "QEMU refused stop: no reason given");
}

TEST(Qmp, WhatIsNotTheProtocolIsAnError) {
  EXPECT_EQ(error_of("[]\n")->errnum, EPROTO);
  EXPECT_EQ(error_of("hello\n")->errnum, EPROTO);
  EXPECT_EQ(error_of("{}\n")->errnum, EPROTO);
  EXPECT_EQ(error_of("")->errnum, ECONNRESET);  // closed without a word
}

TEST(Qmp, AServerOfAnotherKindIsToldByItsGreeting) {
  FakeServer other{[](FakeServer& q) { q.say("{\"hello\": 1}\n"); }};
  const auto qmp = Qmp::connect(other.path());
  ASSERT_FALSE(qmp);
  EXPECT_EQ(qmp.error().errnum, EPROTO);
}

TEST(Qmp, ALateAnswerToAnEarlierCommandIsPassedOver) {
  std::atomic<bool> timed_out{false};
  FakeServer qemu{[&](FakeServer& q) {
    greet(q);
    const Qmp::Json first = json_of(q.hear().first);
    timed_out.wait(false);
    const Qmp::Json second = json_of(q.hear().first);
    for (const Qmp::Json& command : {first, second})
      q.say(Qmp::Json{{"return", command["execute"]}, {"id", command["id"]}}.dump() + "\n");
  }};
  auto qmp = Qmp::connect(qemu.path(), 200ms);
  ASSERT_TRUE(qmp);
  EXPECT_EQ(qmp->execute("stop").error().errnum, ETIMEDOUT);
  timed_out = true;
  timed_out.notify_all();
  EXPECT_EQ(qmp->execute("cont").value(), "cont");
}

TEST(Qmp, ASilentServerTimesOut) {
  std::atomic<bool> done{false};
  FakeServer silent{[&](FakeServer&) { done.wait(false); }};
  const auto qmp = Qmp::connect(silent.path(), 50ms);
  ASSERT_FALSE(qmp);
  EXPECT_EQ(qmp.error().errnum, ETIMEDOUT);
  done = true;
  done.notify_all();
}

TEST(Qmp, APathWithoutAServerOrTooLongIsAnError) {
  EXPECT_EQ(Qmp::connect("/nonexistent/qmp").error().errnum, ENOENT);
  EXPECT_EQ(Qmp::connect("").error().errnum, ENAMETOOLONG);
  EXPECT_EQ(Qmp::connect(std::string(200, 'x')).error().errnum, ENAMETOOLONG);
}

}  // namespace
}  // namespace snowfabric::testing
