// SPDX-License-Identifier: BSD-3-Clause
#include <csignal>
#include <cstring>

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/unit/uffd_fixture.hpp"

namespace snowfabric {
namespace {

using namespace testing;
using ::testing::HasSubstr;

class GuestListenerTest : public UffdTest {};

/// Forks a guest that hands over its memory, then runs `body` with it.
pid_t fork_guest(const std::string& socket_path, void (*body)(const UffdMemory&)) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  std::signal(SIGBUS, SIG_DFL);  // a sanitizer has its own handler
  const UffdMemory memory{kPages};
  const UniqueFd socket = connect_to(socket_path);
  const std::string json = "[" + region_json(memory.base(), kPages, 0) + "]";
  if (send_with_fds(socket.get(), json, {memory.fd()})) body(memory);
  _exit(9);
}
void read_page_3(const UffdMemory& memory) {
  _exit(static_cast<volatile std::byte*>(memory.page(3))[0] == std::byte{4} ? 0 : 1);
}

/// One fault, from whichever thread or process.
Gfn next_fault(ProcessGuest& guest) {
  std::array<Gfn, 1> out{Gfn{~0ULL}};
  while (guest.poll_faults(out) == 0) {
    if (!readable(guest.fault_fd())) {
      ADD_FAILURE() << "no fault came";
      break;
    }
  }
  return out[0];
}

TEST_F(GuestListenerTest, AnotherProcessIsServedAndItsEndIsNoticed) {
  const pid_t child = fork_guest(dir_ / "sock", read_page_3);
  ProcessGuest* guest = poll_until([](const auto& e) { return !e.attached.empty(); }).attached[0];
  EXPECT_EQ(guest->pid(), child);
  EXPECT_EQ(next_fault(*guest), Gfn{3});
  install_one(*guest, Gfn{3});
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  auto events = poll_until_gone();
  EXPECT_EQ(events.gone[0].get(), guest);
  EXPECT_TRUE(listener_->guests().empty());
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 1)), Install::kGone);
  const std::string presence = guest->presence_path();
  EXPECT_TRUE(std::filesystem::exists(presence));
  events.gone.clear();
  EXPECT_FALSE(std::filesystem::exists(presence));
}

TEST_F(GuestListenerTest, AGuestThatClosesItsSocketAsFirecrackerDoesIsServedOn) {
  const UffdMemory memory{kPages};
  ProcessGuest* guest = attach(memory);
  ASSERT_NE(guest, nullptr);
  peer_ = {};
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(listener_->poll(Nanos{0}).gone.empty());
  EXPECT_FALSE(guest->gone());
  run_vcpus(*guest, {[&] { EXPECT_EQ(*memory.page(2), bytes_of(2, 1)[0]); }},
            [&](Gfn page) { install_one(*guest, page); });
}

TEST_F(GuestListenerTest, APageThatCannotBeHadIsSigbusInTheGuestNotZerosAndNotAHang) {
  const pid_t child = fork_guest(dir_ / "sock", read_page_3);
  ProcessGuest* guest = poll_until([](const auto& e) { return !e.attached.empty(); }).attached[0];
  const FailMeans means = guest->fail(next_fault(*guest));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  // Before Linux 6.6 there is no UFFDIO_POISON.
  EXPECT_TRUE(means == FailMeans::kPoisoned || means == FailMeans::kKilled);
  EXPECT_EQ(WTERMSIG(status), means == FailMeans::kPoisoned ? SIGBUS : SIGKILL);
}

TEST_F(GuestListenerTest, KillEndsAGuestThatWaitsOnAPage) {
  const pid_t child = fork_guest(dir_ / "sock", read_page_3);
  ProcessGuest* guest = poll_until([](const auto& e) { return !e.attached.empty(); }).attached[0];
  next_fault(*guest);
  EXPECT_TRUE(guest->kill());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  EXPECT_FALSE(guest->kill()) << "dead and reaped";
  EXPECT_TRUE(guest->gone());
  EXPECT_EQ(guest->fail(Gfn{0}), FailMeans::kGone);
}

TEST_F(GuestListenerTest, AnInstallIntoADeadGuestSaysSo) {
  const pid_t child = fork_guest(dir_ / "sock", [](const UffdMemory&) { _exit(0); });
  ProcessGuest* guest = poll_until([](const auto& e) { return !e.attached.empty(); }).attached[0];
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_FALSE(guest->gone()) << "nobody told it yet";
  EXPECT_EQ(guest->install(Gfn{0}, bytes_of(0, 1)), Install::kGone);
  EXPECT_EQ(listener_->poll(Nanos{0}).gone.size(), 1U);
}

TEST_F(GuestListenerTest, RefusedHandshakesAreReportedAndLeaveNothingBehind) {
  const std::size_t open_fds = count_open_fds();
  for (const std::string_view message : {"hello", "[]", "[{}]"}) {
    peer_ = connect_to(dir_ / "sock");
    ASSERT_TRUE(send_with_fds(peer_.get(), message, {peer_.get()}));
    EXPECT_EQ(poll_until_rejected().rejected.size(), 1U) << message;
  }
  peer_ = connect_to(dir_ / "sock");
  peer_ = {};
  EXPECT_EQ(poll_until_rejected().rejected[0].errnum, ECONNRESET);
  EXPECT_EQ(count_open_fds(), open_fds);
  EXPECT_TRUE(listener_->guests().empty());
}

TEST_F(GuestListenerTest, AHandshakeThatNeverEndsTimesOut) {
  peer_ = connect_to(dir_ / "sock");
  ASSERT_TRUE(send_with_fds(peer_.get(), "[{", {}));
  EXPECT_TRUE(listener_->poll(Nanos{0}).rejected.empty());
  EXPECT_TRUE(listener_->poll(Nanos{99}).rejected.empty());
  const auto events = listener_->poll(Nanos{100});
  ASSERT_EQ(events.rejected.size(), 1U);
  EXPECT_EQ(events.rejected[0].errnum, ETIMEDOUT);
}

TEST_F(GuestListenerTest, OneGuestTooManyIsTurnedAway) {
  const UffdMemory memory[2]{UffdMemory{kPages}, UffdMemory{kPages}};
  ASSERT_NE(attach(memory[0]), nullptr);
  const UniqueFd first = std::move(peer_);
  ASSERT_NE(attach(memory[1]), nullptr);
  const UniqueFd third = connect_to(dir_ / "sock");
  const std::string json = "[" + region_json(memory[0].base(), kPages, 0) + "]";
  ASSERT_TRUE(send_with_fds(third.get(), json, {memory[0].fd()}));
  EXPECT_EQ(poll_until_rejected().rejected[0].errnum, EBUSY);
  EXPECT_EQ(listener_->guests().size(), 2U);
}

TEST_F(GuestListenerTest, AGuestOfAFullHostCanBeCompleted) {
  const UffdMemory memory[2]{UffdMemory{kPages}, UffdMemory{kPages}};
  ASSERT_NE(attach(memory[0]), nullptr);
  const UniqueFd first = std::move(peer_);
  ASSERT_NE(attach(memory[1]), nullptr);
  const UniqueFd asker = connect_to(dir_ / "sock");
  ASSERT_TRUE(send_with_fds(asker.get(), fmt::format(R"([{{"complete": {}}}])", getpid()), {}));
  const auto events =
      poll_until([](const auto& e) { return !e.to_complete.empty() || !e.rejected.empty(); });
  ASSERT_EQ(events.to_complete.size(), 1U);
  EXPECT_EQ(events.to_complete[0].guest, getpid());
}

TEST_F(GuestListenerTest, HandshakesUnderWayAreBounded) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 65; ++i) silent.push_back(connect_to(dir_ / "sock"));
  const auto events = poll_until_rejected();
  ASSERT_EQ(events.rejected.size(), 1U);
  EXPECT_EQ(events.rejected[0].errnum, EBUSY);
}

/// A process of another user that connects, says what a guest may, and waits for the end.
pid_t fork_stranger(const std::string& socket_path, uid_t uid) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  if (setresuid(uid, uid, uid) != 0) _exit(8);
  const UniqueFd socket = connect_to(socket_path);
  if (!socket) _exit(7);
  send_with_fds(socket.get(), R"([{"complete": 1}])", {});
  _exit(readable(socket.get()) ? 0 : 9);
}

constexpr uid_t kNobody = 65534;

TEST_F(GuestListenerTest, AnotherUserIsRefusedWhateverTheModes) {
  if (geteuid() != 0) GTEST_SKIP() << "becoming another user takes root";
  struct stat st{};
  ASSERT_EQ(stat((dir_ / "sock").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777U, 0600U);
  ASSERT_TRUE(chmod((dir_ / "").c_str(), 0711) == 0 && chmod((dir_ / "sock").c_str(), 0666) == 0);
  const pid_t stranger = fork_stranger(dir_ / "sock", kNobody);
  const auto events = poll_until_rejected();
  EXPECT_EQ(events.nb_of_others, 1U);
  EXPECT_EQ(events.rejected[0].errnum, EACCES);
  EXPECT_THAT(events.rejected[0].what, HasSubstr("of user 65534 may not connect"));
  int status = 0;
  ASSERT_EQ(waitpid(stranger, &status, 0), stranger);
  EXPECT_EQ(status, 0) << "its connection was not closed";
}

TEST_F(GuestListenerTest, AUserWhoIsNamedMayConnectAndNoOther) {
  if (geteuid() != 0) GTEST_SKIP() << "becoming another user takes root";
  listener_.reset();
  ASSERT_EQ(chmod((dir_ / "").c_str(), 0711), 0);
  auto listener = GuestListener::create({.socket_path = dir_ / "sock",
                                         .presence_dir = dir_ / "presence",
                                         .image = kImage,
                                         .guest_uids = {kNobody}});
  ASSERT_TRUE(listener.has_value()) << listener.error().what;
  listener_ = std::move(*listener);
  const pid_t named = fork_stranger(dir_ / "sock", kNobody);
  const auto asked =
      poll_until([](const auto& e) { return !e.to_complete.empty() || !e.rejected.empty(); });
  EXPECT_EQ(asked.to_complete.size(), 1U);
  const pid_t other = fork_stranger(dir_ / "sock", kNobody - 1);
  EXPECT_EQ(poll_until_rejected().nb_of_others, 1U);
  for (const pid_t child : {named, other}) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
}

TEST_F(GuestListenerTest, ALiveSocketIsNotTakenOverAndAStaleOneIs) {
  const ListenerConfig config{
      .socket_path = dir_ / "sock", .presence_dir = dir_ / "other", .image = kImage};
  const auto second = GuestListener::create(config);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().errnum, EADDRINUSE);
  EXPECT_THAT(second.error().what, HasSubstr(dir_ / "sock"));
  EXPECT_TRUE(std::filesystem::exists(dir_ / "sock"));

  listener_.reset();
  EXPECT_FALSE(std::filesystem::exists(dir_ / "sock")) << "unlinked at close";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (dir_ / "sock").c_str());
  {
    const UniqueFd dead{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(dir_ / "sock"));
  EXPECT_TRUE(GuestListener::create(config).has_value());
}

TEST_F(GuestListenerTest, ASocketPathThatCannotBeIsRefused) {
  const auto errno_for = [&](const std::string& path) {
    const auto listener =
        GuestListener::create({.socket_path = path, .presence_dir = dir_ / "p", .image = kImage});
    return listener ? 0 : listener.error().errnum;
  };
  EXPECT_EQ(errno_for(""), ENAMETOOLONG);
  EXPECT_EQ(errno_for(dir_ / std::string(200, 'x')), ENAMETOOLONG);
  EXPECT_EQ(errno_for(dir_ / "presence"), EEXIST) << "a folder is there";
  EXPECT_EQ(errno_for(dir_ / "missing/sock"), ENOENT);
}

}  // namespace
}  // namespace snowfabric
