// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/qmp.hpp"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view kGreeting = R"({"QMP": {"version": {}, "capabilities": []}})"
                                       "\n";

/// A QEMU that says what the test scripts. One client.
class FakeQemu {
 public:
  using Script = std::function<void(FakeQemu&)>;
  explicit FakeQemu(Script script) {
    std::string name = (std::filesystem::temp_directory_path() / "sf-qmp-XXXXXX").string();
    dir_ = mkdtemp(name.data());
    listener_ = UniqueFd{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path().copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    thread_ = std::thread{[this, script] {
      peer_ = UniqueFd{accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      script(*this);
      const UniqueFd closed{std::move(peer_)};
    }};
  }
  FakeQemu(const FakeQemu&) = delete;
  FakeQemu& operator=(const FakeQemu&) = delete;
  ~FakeQemu() {
    thread_.join();
    std::filesystem::remove_all(dir_);
  }

  [[nodiscard]] std::string path() const { return dir_ + "/qmp"; }
  void say(std::string_view text) {
    EXPECT_EQ(send(peer_.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  /// The next command, and the descriptor that came with it or -1.
  std::pair<Qmp::Json, int> hear() {
    std::array<char, 4096> text{};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec iov{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = recvmsg(peer_.get(), &message, MSG_CMSG_CLOEXEC);
    int fd = -1;
    if (const cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr)
      std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return {Qmp::Json::parse(text.data(), text.data() + std::max<ssize_t>(n, 0), nullptr, false),
            fd};
  }
  void greet() {
    say(kGreeting);
    EXPECT_EQ(hear().first["execute"], "qmp_capabilities");
    say("{\"return\": {}}\n");
  }

 private:
  std::string dir_;
  UniqueFd listener_, peer_;
  std::thread thread_;
};

/// The error of a command that this QEMU answers so, or nothing.
std::optional<Error> error_of(const std::string& answer) {
  FakeQemu qemu{[&](FakeQemu& q) {
    q.greet();
    q.hear();
    if (!answer.empty()) q.say(answer);
  }};
  auto qmp = Qmp::connect(qemu.path(), 2s);
  EXPECT_TRUE(qmp);
  const auto result = qmp->execute("stop");
  return result ? std::nullopt : std::optional{result.error()};
}

TEST(Qmp, ACommandsAnswerIsReturnedAndEventsBeforeItArePassedOver) {
  FakeQemu qemu{[](FakeQemu& q) {
    q.greet();
    const auto [command, fd] = q.hear();
    EXPECT_EQ(command["execute"], "query-name");
    EXPECT_EQ(command["arguments"]["a"], 1);
    EXPECT_EQ(fd, -1);
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

TEST(Qmp, ADescriptorGoesWithItsCommand) {
  FakeQemu qemu{[](FakeQemu& q) {
    q.greet();
    const auto [command, fd] = q.hear();
    EXPECT_GE(fd, 0);
    struct stat st{};
    EXPECT_EQ(fstat(fd, &st), 0);
    EXPECT_TRUE(S_ISFIFO(st.st_mode));
    close(fd);
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
  FakeQemu other{[](FakeQemu& q) { q.say("{\"hello\": 1}\n"); }};
  const auto qmp = Qmp::connect(other.path());
  ASSERT_FALSE(qmp);
  EXPECT_EQ(qmp.error().errnum, EPROTO);
}

TEST(Qmp, ASilentServerTimesOut) {
  std::atomic<bool> done{false};
  FakeQemu silent{[&](FakeQemu&) { done.wait(false); }};
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
}  // namespace snowfabric
