// SPDX-License-Identifier: BSD-3-Clause
// The bare loop over kernel sockets that `fabric-bench sockets` takes as limit, on the loopback
// interface.
#include "tools/bench_sockets.hpp"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include "fabric/base/prng.hpp"

namespace snowfabric::bench {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kNbPages = 301;  // the last one goes alone
constexpr Nanos kSilence{200ms};

class BenchSockets : public ::testing::Test {
 protected:
  BenchSockets() : file_{::memfd_create("image", MFD_CLOEXEC)} {
    Prng random{1};
    std::vector<std::uint64_t> words(kNbPages * kPageSize / sizeof(std::uint64_t));
    for (auto& word : words) word = random.next();
    EXPECT_EQ(::write(file_.get(), words.data(), kNbPages * kPageSize),
              static_cast<ssize_t>(kNbPages * kPageSize));
  }

  [[nodiscard]] Result<Image> image() const {
    return Image::open(fmt::format("/proc/self/fd/{}", file_.get()));
  }

  /// Sends all pages to a receiver. @return the latter
  Result<SocketReceiver> transfer(const Image& image, std::uint16_t mtu_bytes, Arena& arena) {
    auto receiver = SocketReceiver::open(options(mtu_bytes), arena);
    if (!receiver) return receiver;
    auto sender = SocketSender::open(options(mtu_bytes), image);
    EXPECT_TRUE(sender);
    std::thread receiving{[&] { EXPECT_TRUE(receiver->run(stop_, kSilence)); }};
    EXPECT_TRUE(sender->run(stop_));
    receiving.join();
    nb_sent_frames_ = sender->nb_frames();
    seconds_ = sender->seconds();
    return receiver;
  }

  /// So that nothing is lost, however late the receiver comes.
  static bool holds_all() {
    const UniqueFd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    const int nb_bytes = 8 << 20;
    return ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &nb_bytes, sizeof nb_bytes) == 0;
  }

  /// A page of zeros with a wrong checksum, behind where Ethernet's header would be.
  static std::vector<std::byte> page_frame(std::uint32_t seq) {
    std::vector<std::byte> frame(wire::kPageHeaderBytes + kPageSize);
    wire::write_page_header(frame, {}, kBroadcast, {}, Gfn{seq}, 1, 0, 1, wire::kFlagSequenced,
                            seq);
    frame.erase(frame.begin(), frame.begin() + sizeof(wire::EthHdr));
    return frame;
  }

  static void send_datagram(const std::vector<std::byte>& bytes) {
    const UniqueFd socket{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
    const in_addr loopback{.s_addr = htonl(INADDR_LOOPBACK)};
    EXPECT_EQ(::setsockopt(socket.get(), IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback),
              0);
    const sockaddr_in to = socket_group();
    EXPECT_GE(::sendto(socket.get(), bytes.data(), bytes.size(), 0,
                       reinterpret_cast<const sockaddr*>(&to), sizeof to),
              0);
  }

  [[nodiscard]] SocketOptions options(std::uint16_t mtu_bytes) const {
    return {.interface = "lo", .mtu_bytes = mtu_bytes, .pages_per_s = pages_per_s_};
  }

  UniqueFd file_;
  std::atomic<bool> stop_{false};
  double pages_per_s_ = 0;
  std::uint64_t nb_sent_frames_ = 0;
  double seconds_ = 0;
};

TEST_F(BenchSockets, BringTwoPagesOneOrAThirdInAFrameAsTheMtuAllows) {
  if (!holds_all()) GTEST_SKIP() << "large socket buffers need CAP_NET_ADMIN";
  const auto image = this->image();
  ASSERT_TRUE(image);
  struct Case {
    std::uint16_t mtu_bytes;
    std::uint64_t nb_frames;
  };
  for (const auto& [mtu, nb_frames] :
       {Case{9000, (kNbPages + 1) / 2}, Case{4200, kNbPages}, Case{1500, 3 * kNbPages}}) {
    auto arena = Arena::make(kNbPages);
    ASSERT_TRUE(arena);
    const auto receiver = transfer(*image, mtu, *arena);
    ASSERT_TRUE(receiver) << receiver.error().what;
    EXPECT_EQ(nb_sent_frames_, nb_frames) << mtu;
    EXPECT_EQ(receiver->nb_frames(), nb_frames) << mtu;
    EXPECT_EQ(receiver->nb_pages(), kNbPages) << mtu;
    EXPECT_EQ(receiver->nb_bad() + receiver->nb_foreign() + receiver->nb_lost(), 0U) << mtu;
    EXPECT_GT(receiver->seconds(), 0) << mtu;
    EXPECT_TRUE(arena->equals(*image)) << mtu;
  }
}

TEST_F(BenchSockets, AreNoFasterThanTheirPace) {
  const auto image = this->image();
  auto arena = Arena::make(kNbPages);
  ASSERT_TRUE(image && arena);
  pages_per_s_ = 2000;
  ASSERT_TRUE(transfer(*image, 9000, *arena));
  // Bursts of 128 pages: the third, and last, goes when those of the first two are due.
  EXPECT_GE(seconds_, 255 / pages_per_s_);
}

TEST_F(BenchSockets, CountAPageThatIsNotAsItsChecksumSays) {
  if (!holds_all()) GTEST_SKIP() << "large socket buffers need CAP_NET_ADMIN";
  const auto image = this->image();
  auto arena = Arena::make(kNbPages);
  ASSERT_TRUE(image && arena);
  const char changed = static_cast<char>(~std::to_integer<int>(image->page(Gfn{7})[0]));
  ASSERT_EQ(::pwrite(file_.get(), &changed, 1, 7 * kPageSize), 1);
  const auto receiver = transfer(*image, 9000, *arena);
  ASSERT_TRUE(receiver) << receiver.error().what;
  EXPECT_EQ(receiver->nb_bad(), 1U);
  EXPECT_EQ(receiver->nb_pages(), kNbPages - 1);
}

TEST_F(BenchSockets, CountFramesThatAreMissingBeforeTheLastAndWhatIsNone) {
  auto arena = Arena::make(kNbPages);
  ASSERT_TRUE(arena);
  auto receiver = SocketReceiver::open(options(9000), *arena);
  ASSERT_TRUE(receiver) << receiver.error().what;
  send_datagram(page_frame(2));  // 0 and 1 are missing
  send_datagram(page_frame(5));  // and so are 3 and 4
  send_datagram({});
  EXPECT_TRUE(receiver->run(stop_, kSilence));
  EXPECT_EQ(receiver->nb_frames(), 2U);
  EXPECT_EQ(receiver->nb_lost(), 4U);
  EXPECT_EQ(receiver->nb_foreign(), 1U);
}

TEST_F(BenchSockets, SayWhatIsWrongWithInterfaceAndMtu) {
  const auto image = this->image();
  auto arena = Arena::make(1);
  ASSERT_TRUE(image && arena);
  const SocketOptions unknown{.interface = "no-such-one", .mtu_bytes = 9000};
  EXPECT_EQ(SocketSender::open(unknown, *image).error().errnum, ENODEV);
  EXPECT_EQ(SocketReceiver::open(unknown, *arena).error().errnum, ENODEV);
  EXPECT_EQ(SocketSender::open(options(500), *image).error().errnum, EINVAL);
}

}  // namespace
}  // namespace snowfabric::bench
