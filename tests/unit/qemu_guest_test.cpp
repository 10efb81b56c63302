// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/qemu_guest.hpp"

#include <fmt/format.h>

#include "tests/unit/qemu_clone_fixture.hpp"

namespace snowfabric::testing {
namespace {

using ::testing::HasSubstr;

void put(std::string& out, std::uint64_t value, int nb_bytes) {
  while (nb_bytes-- > 0) out.push_back(static_cast<char>(value >> (8 * nb_bytes) & 0xff));
}

/// QEMU's request for pages of a block.
std::string request(std::string_view block, std::uint64_t first, std::uint32_t nb_pages = 1) {
  std::string out;
  put(out, 3, 2);
  put(out, 13 + block.size(), 2);
  put(out, first * kPageSize, 8);
  put(out, nb_pages * kPageSize, 4);
  put(out, block.size(), 1);
  return out.append(block);
}

/// QEMU's answer what it has of a block: pages below `nb_there`.
std::string received(std::string_view block, std::uint64_t nb_pages, std::uint64_t nb_there) {
  std::string out;
  put(out, 5, 2);
  put(out, 1 + block.size(), 2);
  put(out, block.size(), 1);
  out += block;
  const std::uint64_t nb_bytes = (nb_pages + 63) / 64 * 8;
  put(out, nb_bytes, 8);
  for (std::uint64_t first = 0; first < nb_bytes * 8; first += 8) {
    const std::uint64_t nb_set = std::min<std::uint64_t>(8, nb_there - std::min(nb_there, first));
    put(out, (1U << nb_set) - 1, 1);
  }
  put(out, 0x0123456789abcdef, 8);
  return out;
}

struct QemuGuestTest : QemuCloneTest {
  void SetUp() override {
    begin(kHandover);
    EXPECT_EQ(hear(seed_->preamble.size()), seed_->preamble);
  }
};

TEST_F(QemuGuestTest, PagesAskedForAreReportedOnceAndSentOnce) {
  say(request("pc.rom", 1) + request("pc.rom", 1));
  EXPECT_EQ(faults(), (std::vector<std::uint64_t>{kRamPages + 1}));
  EXPECT_TRUE(guest_->waits(Gfn{kRamPages + 1}));
  EXPECT_EQ(guest_->install(Gfn{kRamPages + 1}, page_of(13)), Install::kDone);
  const auto heard = hear(8 + 1 + 6 + kPageSize);
  EXPECT_TRUE(std::equal(heard.end() - kPageSize, heard.end(), page_of(13).begin()));
  EXPECT_FALSE(guest_->waits(Gfn{kRamPages + 1}));
  EXPECT_EQ(guest_->install(Gfn{kRamPages + 1}, page_of(13)),
            Install::kDone);  // a multicast duplicate
  EXPECT_TRUE(silent());
  EXPECT_EQ(guest_->counters().skipped_pages.read(), 1U);
  say(request("pc.rom", 1));  // it crossed the answer
  EXPECT_TRUE(faults().empty());
  EXPECT_EQ(guest_->counters().faults_raced.read(), 1U);
}

TEST_F(QemuGuestTest, ARequestLongerThanTheCallersRoomIsReportedInParts) {
  say(request("pc.ram", 0, 12));
  EXPECT_EQ(faults().size(), 12U);
}

TEST_F(QemuGuestTest, OfAWholeBlockItGetsNoMoreAtOnceThanVcpusMayWaitFor) {
  say(request("pc.ram", 0, kRamPages));
  EXPECT_EQ(faults().size(), QemuGuest::kMaxAsked);
  EXPECT_TRUE(faults().empty());
  EXPECT_FALSE(guest_->gone());
  EXPECT_EQ(guest_->install_zeros({Gfn{0}, 10}), Install::kDone);
  EXPECT_EQ(guest_->install_zeros({Gfn{0}, 10}), Install::kDone);  // nobody waits for these
  EXPECT_EQ(guest_->install_zeros({Gfn{kRamPages}, 4}), Install::kDone);
  EXPECT_EQ(faults().size(), 10U);
}

TEST_F(QemuGuestTest, AQemuThatRepeatsItselfDoesNotKeepTheCaller) {
  std::string again;
  for (int i = 0; i < 4000; ++i) again += request("pc.rom", 1);
  say(again);
  std::array<Gfn, 8> out;
  EXPECT_EQ(guest_->poll_faults(out), 1U);
  EXPECT_LE(guest_->counters().faults_repeated.read(), 512U);
  for (int i = 0; i < 40; ++i) guest_->poll_faults(out);
  EXPECT_EQ(guest_->counters().faults_repeated.read(), 3999U);
}

TEST_F(QemuGuestTest, ARequestForPagesItHasDoesNotKeepTheCaller) {
  EXPECT_EQ(guest_->install_zeros({Gfn{0}, kRamPages}), Install::kDone);
  say(request("pc.ram", 0, kRamPages) + request("pc.rom", 1));
  std::array<Gfn, 8> out;
  EXPECT_EQ(guest_->poll_faults(out), 0U);
  EXPECT_LE(guest_->counters().faults_raced.read(), 512U);
  EXPECT_EQ(guest_->poll_faults(out), 1U);
  EXPECT_EQ(guest_->counters().faults_raced.read(), kRamPages);
}

TEST_F(QemuGuestTest, TheLastPageEndsTheMigration) {
  EXPECT_EQ(guest_->install_zeros({Gfn{0}, kClonePages - 1}), Install::kDone);
  drain();
  EXPECT_EQ(guest_->install(Gfn{kClonePages - 1}, page_of(3)), Install::kDone);
  const auto heard = drain();
  const auto end = qemu::postcopy_end(seed_->state);
  ASSERT_GT(heard.size(), end.size());
  EXPECT_TRUE(std::equal(end.rbegin(), end.rend(), heard.rbegin()));
  EXPECT_EQ(guest_->presence().count(PageState::kPresent), kClonePages);
}

TEST_F(QemuGuestTest, AQemuThatDoesNotReadPutsInstallsOffAndLosesNothing) {
  std::uint64_t gfn = 0;
  while (gfn < kClonePages && guest_->install(Gfn{gfn}, page_of(gfn)) == Install::kDone) ++gfn;
  ASSERT_LT(gfn, kClonePages);  // socket and queue are full
  EXPECT_TRUE(guest_->presence().absent(Gfn{gfn}));
  std::size_t nb_bytes = 0;
  for (auto heard = drain(); !heard.empty(); heard = drain()) {
    nb_bytes += heard.size();
    faults();  // sends what is queued
  }
  EXPECT_GE(nb_bytes, gfn * kPageSize);
  EXPECT_EQ(guest_->install(Gfn{gfn}, page_of(gfn)), Install::kDone);
}

TEST_F(QemuGuestTest, GarbageFromQemuEndsItsConnectionAlone) {
  say(request("no.such.block", 0));
  EXPECT_TRUE(faults().empty());
  EXPECT_TRUE(guest_->gone());
  EXPECT_THAT(std::string{guest_->trouble()}, HasSubstr("migration protocol"));
}

TEST_F(QemuGuestTest, AFailedPageClosesTheChannelSoThatQemuPauses) {
  say(request("pc.ram", 3));
  EXPECT_EQ(faults().size(), 1U);
  EXPECT_EQ(guest_->fail(Gfn{3}), FailMeans::kPaused);
  EXPECT_TRUE(guest_->gone());
  EXPECT_TRUE(hear(1).empty());
  EXPECT_FALSE(silent());  // end of file
  poll_listener();
  EXPECT_EQ(nb_gone_, 1U);
}

TEST_F(QemuGuestTest, ItSurvivesMemtapsEnd) { EXPECT_TRUE(guest_->survives_memtap()); }

/// A QEMU that paused and is handed over again; of pc.ram it has the first pages, of pc.rom
/// nothing.
struct QemuRecoveryTest : QemuGuestTest {
  static constexpr std::uint64_t kThere = 100;

  void SetUp() override {
    leave_presence_file();
    begin(kRecovery);
    const auto question = qemu::ask_received(seed_->state);
    EXPECT_EQ(hear(question.size()), question);
  }

  /// That of a memtap that thought it had sent everything.
  void leave_presence_file() {
    ASSERT_TRUE(std::filesystem::create_directory(dir_ / "presence"));
    const auto old =
        PresenceFile::create(dir_ / "old", {.image_id = 7, .nb_pages = kClonePages, .epoch = 1});
    ASSERT_TRUE(old) << old.error().what;
    Presence pages = old->view();
    for (std::uint64_t i = 0; i < kClonePages; ++i)
      if (pages.claim(Gfn{i}, PageState::kClaimedByMemtap)) pages.mark_present(Gfn{i});
    std::filesystem::copy_file(dir_ / "old", dir_ / "presence/clone-0.presence");
  }
  void recover(std::uint64_t nb_there = kThere, std::uint64_t nb_rom_there = 0) {
    say(received("pc.ram", kRamPages, nb_there) + received("pc.rom", 4, nb_rom_there));
    EXPECT_TRUE(faults().empty());  // takes it in
  }
  void expect_resumed() {
    const auto resume = qemu::postcopy_resume(seed_->state);
    EXPECT_EQ(hear(resume.size()), resume);
  }
};

TEST_F(QemuRecoveryTest, WhatQemuHasIsPresentAndAllElseAbsent) {
  recover();
  expect_resumed();
  EXPECT_TRUE(silent());
  EXPECT_EQ(guest_->presence().count(PageState::kPresent), kThere);
  EXPECT_FALSE(guest_->presence().absent(Gfn{kThere - 1}));
  EXPECT_TRUE(guest_->presence().absent(Gfn{kThere}));
}

TEST_F(QemuRecoveryTest, BeforeAllBlocksAreToldNothingIsInstalledAndNoFaultReported) {
  say(request("pc.ram", 500) + received("pc.ram", kRamPages, kThere) + request("pc.rom", 0));
  EXPECT_TRUE(faults().empty());
  EXPECT_EQ(guest_->install(Gfn{500}, page_of(1)), Install::kAgain);
  EXPECT_EQ(guest_->install_zeros({Gfn{kRamPages}, 4}), Install::kAgain);
  EXPECT_TRUE(silent());
  EXPECT_TRUE(guest_->presence().absent(Gfn{500}));
  EXPECT_FALSE(guest_->waits(Gfn{500}));
  say(received("pc.rom", 4, 0) + request("pc.ram", 500));
  EXPECT_EQ(faults(), (std::vector<std::uint64_t>{500}));
  expect_resumed();
  EXPECT_EQ(guest_->install(Gfn{500}, page_of(1)), Install::kDone);
  EXPECT_EQ(hear(8 + 1 + 6 + kPageSize).size(), 8 + 1 + 6 + kPageSize);  // names its block
}

TEST_F(QemuRecoveryTest, AnAnswerInSmallPiecesIsTheSame) {
  const std::string all =
      received("pc.ram", kRamPages, kThere) + received("pc.rom", 4, 0) + request("pc.rom", 2);
  std::vector<std::uint64_t> asked;
  for (const char c : all) {
    say({c});
    for (const auto page : faults()) asked.push_back(page);
  }
  EXPECT_EQ(asked, (std::vector<std::uint64_t>{kRamPages + 2}));
  EXPECT_EQ(guest_->presence().count(PageState::kPresent), kThere);
}

TEST_F(QemuRecoveryTest, APageThatQemuHasIsNeverSentAgain) {
  recover();
  expect_resumed();
  const std::vector<std::byte> two(2 * kPageSize);
  EXPECT_EQ(guest_->install(Gfn{kThere - 1}, two), Install::kDone);
  EXPECT_EQ(drain().size(), 8 + 1 + 6 + kPageSize);  // the second alone
  EXPECT_EQ(guest_->counters().skipped_pages.read(), 1U);
}

TEST_F(QemuRecoveryTest, TheLastPageItLacksEndsTheMigration) {
  recover(kRamPages, 3);
  expect_resumed();
  EXPECT_EQ(guest_->install(Gfn{kClonePages - 1}, page_of(3)), Install::kDone);
  const auto end = qemu::postcopy_end(seed_->state);
  const auto heard = drain();
  ASSERT_GT(heard.size(), end.size());
  EXPECT_TRUE(std::equal(end.rbegin(), end.rend(), heard.rbegin()));
}

TEST_F(QemuRecoveryTest, AQemuThatLacksNothingGetsTheEndAlone) {
  recover(kRamPages, 4);
  expect_resumed();
  EXPECT_EQ(drain(), qemu::postcopy_end(seed_->state));
}

TEST_F(QemuRecoveryTest, GarbageInsteadOfABitmapEndsItsConnectionAlone) {
  say(received("pc.ram", kRamPages - 100, kThere));  // too short
  EXPECT_TRUE(faults().empty());
  EXPECT_TRUE(guest_->gone());
  EXPECT_THAT(std::string{guest_->trouble()}, HasSubstr("migration protocol"));
  EXPECT_TRUE(silent());
}

TEST_F(QemuRecoveryTest, BitmapsInAnotherOrderEndItsConnection) {
  say(received("pc.ram", kRamPages, 1) + received("pc.ram", kRamPages, 1));
  EXPECT_TRUE(faults().empty());
  EXPECT_TRUE(guest_->gone());
  EXPECT_THAT(std::string{guest_->trouble()}, HasSubstr("another order"));
}

TEST_F(QemuRecoveryTest, AQemuThatHangsUpInTheMiddleLeaves) {
  say(received("pc.ram", kRamPages, 1));
  qemu_ = UniqueFd{};
  faults();
  faults();
  poll_listener();
  EXPECT_EQ(nb_gone_, 1U);
}

/// Two checkpoints of one parent are served on one host: the pages of the other would fit in.
TEST_F(QemuCloneTest, AQemuOfAnotherImageIsRefused) {
  listen();
  for (const char* image : {"0000000000000008-1", "0000000000000007-2", ""})
    for (const char* rest : {R"("recover": true)", R"("recover": false)"})
      EXPECT_THAT(refusal_of(fmt::format(R"([{{"adapter": "qemu-postcopy", "image": "{}", {}}}])",
                                         image, rest)),
                  HasSubstr("this memtap serves 0000000000000007-1"));
  hand_over(R"([{"adapter": "qemu-postcopy", "image": "0000000000000007-1"}])");
}

TEST(QemuHandshake, WhoeverAsksForARecoveryNamesTheImage) {
  EXPECT_EQ(handover_of(kRecovery), Handover::kPostcopy);
  EXPECT_EQ(qemu_request_of(kRecovery).value(), (QemuRequest{"0000000000000007-1", true}));
  EXPECT_EQ(qemu_request_of(kHandover).value(), QemuRequest{});
  EXPECT_EQ(qemu_request_of(R"([{"adapter": "qemu-precopy", "image": "i"}])").value(),
            (QemuRequest{"i", false}));
  for (const char* bad :
       {R"([{"adapter": "qemu-postcopy", "recover": true}])",
        R"([{"adapter": "qemu-postcopy", "image": "i", "recover": 1}])",
        R"([{"adapter": "qemu-postcopy", "image": "i", "recover": "true"}])",
        R"([{"adapter": "qemu-postcopy", "image": 1}])",
        R"([{"adapter": "qemu-precopy", "image": "i", "recover": true}])", "[]", "x"}) {
    const auto request = qemu_request_of(bad);
    ASSERT_FALSE(request) << bad;
    EXPECT_EQ(request.error().errnum, EINVAL);
  }
}

TEST(CompletionHandshake, NamesTheProcessOfAGuest) {
  constexpr std::string_view kRequest = R"([{"complete": 4711}])";
  EXPECT_EQ(handover_of(kRequest), Handover::kCompletion);
  EXPECT_EQ(guest_to_complete(kRequest).value(), 4711);
  for (const char* bad :
       {R"([{"complete": 0}])", R"([{"complete": -1}])", R"([{"complete": 2147483648}])",
        R"([{"complete": "1"}])", R"([{"complete": 1.5}])", R"({"complete": 1})", "[]", "x"}) {
    const auto guest = guest_to_complete(bad);
    ASSERT_FALSE(guest) << bad;
    EXPECT_EQ(guest.error().errnum, EINVAL);
  }
}

TEST(QemuHandshake, WithoutADescriptorNoQemuCanCome) {
  const TempDir dir;
  auto listener = GuestListener::create({.socket_path = dir / "sock",
                                         .presence_dir = dir / "presence",
                                         .image = {.image_id = 7, .nb_pages = 4, .epoch = 1}});
  ASSERT_TRUE(listener);
  std::array<int, 2> ends{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const UniqueFd qemu{ends[0]}, channel{ends[1]};
  const UniqueFd requester = connect_to(dir / "sock");
  ASSERT_TRUE(send_with_fds(requester.get(), kHandover, {channel.get()}));
  std::vector<Error> rejected;
  for (int i = 0; i < 100 && rejected.empty(); ++i) {
    pollfd ready{(*listener)->epoll_fd(), POLLIN, 0};
    ::poll(&ready, 1, 100);
    rejected = (*listener)->poll(Nanos{0}).rejected;
  }
  ASSERT_EQ(rejected.size(), 1U);
  EXPECT_THAT(rejected[0].what, HasSubstr("--descriptor"));
}

TEST(QemuHandshake, OnlyItsExactFormIsTakenForOne) {
  EXPECT_EQ(handover_of(kHandover), Handover::kPostcopy);
  EXPECT_EQ(handover_of(R"([{"adapter": "qemu-precopy"}])"), Handover::kPrecopy);
  for (const char* other :
       {"[]", "[{}]", R"([{"adapter": 1}])", R"([{"adapter": "uffd"}])",
        R"({"adapter": "qemu-postcopy"})", R"([{"adapter": "qemu-postcopy"}, {}])", "[1]", "x"})
    EXPECT_EQ(handover_of(other), Handover::kRegions) << other;
}

}  // namespace
}  // namespace snowfabric::testing
