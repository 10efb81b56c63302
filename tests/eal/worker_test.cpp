// SPDX-License-Identifier: BSD-3-Clause
// Both poll loops in one process, over two rings that lead from one port to the other.
#include "memserver-dpdk/worker.hpp"

#include <rte_eth_ring.h>
#include <rte_ring.h>
#include <unistd.h>

#include <optional>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/mman.h>

#include "fabric/base/prng.hpp"
#include "fabric/base/unique_fd.hpp"
#include "fabric/seal_mbuf.hpp"
#include "memtap-dpdk/worker.hpp"
#include "tests/eal/mbufs.hpp"
#include "tests/unit/fake_guest.hpp"

namespace snowfabric {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kPages = 200;
constexpr std::uint64_t kImageId = 0x5eed;
constexpr unsigned kRingFrames = 256;

/// A file of seeded random pages; every seventh is zero.
UniqueFd image_file() {
  UniqueFd fd{memfd_create("image", MFD_CLOEXEC)};
  Prng random{4};
  std::vector<std::uint64_t> bytes(kPages * kPageSize / 8);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = i / (kPageSize / 8) % 7 == 6 ? 0 : random.next();
  EXPECT_EQ(write(fd.get(), bytes.data(), bytes.size() * 8),
            static_cast<ssize_t>(bytes.size() * 8));
  return fd;
}
constexpr std::uint64_t kZeroPages = kPages / 7;
constexpr std::uint64_t kDataPages = kPages - kZeroPages;

struct RingFree {
  void operator()(rte_ring* ring) const noexcept { rte_ring_free(ring); }
};
using RingPtr = std::unique_ptr<rte_ring, RingFree>;

/// A port that receives from one ring and sends to the other.
Port open_port(const std::string& name, rte_ring* rx, rte_ring* tx, unsigned mtu) {
  EXPECT_GE(rte_eth_from_rings(name.c_str(), &rx, 1, &tx, 1, kAnySocket), 0);
  PortConfig config;
  config.profile = load_profile("net_ring").value();
  config.profile.nb_mbufs = 1023;
  config.name = "net_ring_" + name;
  config.mtu = mtu;
  return Port::open(config).value();
}

/// One that is in the group of every sealed Bed, with room to remember one sender.
std::unique_ptr<Seal> group_seal() {
  return std::move(Seal::make(GroupKey{GroupKey::Bytes{}}, 1).value());
}

std::uint64_t nb_dropped(const DropCounters& drops, wire::Drop why) {
  return drops.by_reason[static_cast<std::size_t>(why)].read();
}

/// A memserver and a memtap with one guest. Time passes by turns.
class Bed {
 public:
  Bed(unsigned mtu, TxMode mode, double loss = 0, unsigned nb_images = 1, bool sealed = false)
      : nb_{++nb_beds_},
        to_client_{make_ring("c")},
        to_server_{make_ring("s")},
        server_port_{open_port(fmt::format("srv{}", nb_), to_server_.get(), to_client_.get(), mtu)},
        client_port_{
            open_port(fmt::format("cli{}", nb_), to_client_.get(), to_server_.get(), mtu)} {
    const UniqueFd file = image_file();
    if (sealed) {
      server_seal = group_seal();
      client_seal = group_seal();
      mtu -= static_cast<unsigned>(wire::kSealBytes);
    }
    ServerConfig config{.mtu_bytes = static_cast<std::uint16_t>(mtu), .burst_bytes = 1U << 20U};
    for (unsigned i = 0; i < nb_images; ++i) {
      auto image = Image::open(fmt::format("/proc/self/fd/{}", file.get()),
                               {.image_id = kImageId + i, .epoch = 1});
      served.push_back(std::make_unique<Served>(std::move(image.value()), config));
    }
    server.emplace(served, server_port_, mode, loss, 1, server_seal.get());
    ClientConfig mine;
    mine.client_id = 1;
    mine.image_id = kImageId;
    mine.epoch = 1;
    mine.mac = client_port_.mac();
    mine.mtu_bytes = static_cast<std::uint16_t>(mtu);
    engine.emplace(mine, client_stats);
    host.emplace(*engine, host_stats, 0, 16);
    client.emplace(*engine, client_port_, loss, 2, client_seal.get());
    host->attach(guest);
    client->serve(*host, -1);
  }
  /// Both pools are full again once nobody holds a frame.
  ~Bed() {
    while (server->turn(now) + client->turn(now) != 0) now += 1us;
    server.reset();
    client.reset();
    EXPECT_EQ(server_port_.mbufs_in_use(), 0U);
    EXPECT_EQ(client_port_.mbufs_in_use(), 0U);
    EXPECT_EQ(server_port_.close(), 0U);
    EXPECT_EQ(client_port_.close(), 0U);
  }
  Bed(const Bed&) = delete;
  Bed& operator=(const Bed&) = delete;

  void turn() {
    client->turn(now);
    server->turn(now);
    now += 10us;
  }
  void join() {
    for (int i = 0; i < 100'000 && engine->state() != ClientState::kJoined; ++i) turn();
    ASSERT_EQ(engine->state(), ClientState::kJoined);
  }
  /// The guest touches every page, one after the other.
  void read_all() {
    for (std::uint64_t p = 0; p < kPages; ++p) {
      guest.touch(p);
      for (int i = 0; i < 500'000 && !guest.has(p); ++i) turn();
      ASSERT_TRUE(guest.has(p)) << "page " << p;
    }
    EXPECT_TRUE(std::ranges::equal(guest.memory, served[0]->image.bytes()));
    EXPECT_FALSE(guest.anybody_waits());
  }
  /// The next frame on its way to the client, taken away from it.
  rte_mbuf* intercept() { return take_from(*to_client_); }
  /// The next frame on its way to the server.
  rte_mbuf* intercept_request() { return take_from(*to_server_); }
  void deliver(rte_mbuf* frame) { ASSERT_EQ(rte_ring_enqueue(to_client_.get(), frame), 0); }
  void inject(rte_mbuf* frame) { ASSERT_EQ(rte_ring_enqueue(to_server_.get(), frame), 0); }
  [[nodiscard]] const Port& client_port() const { return client_port_; }
  [[nodiscard]] const ServerStats& server_stats() const { return served[0]->stats; }

  Nanos now{0};
  std::vector<std::unique_ptr<Served>> served;
  std::unique_ptr<Seal> server_seal{}, client_seal{};
  ClientStats client_stats;
  HostStats host_stats;
  test::FakeGuest guest{kPages};
  std::optional<ClientEngine> engine;
  std::optional<Host> host;
  std::optional<ServerWorker> server;
  std::optional<ClientWorker> client;

 private:
  static rte_mbuf* take_from(rte_ring& ring) {
    void* frame = nullptr;
    return rte_ring_dequeue(&ring, &frame) == 0 ? static_cast<rte_mbuf*>(frame) : nullptr;
  }
  RingPtr make_ring(const char* name) const {
    return RingPtr{
        rte_ring_create(fmt::format("{}{}", name, nb_).c_str(), kRingFrames, SOCKET_ID_ANY, 0)};
  }
  static inline unsigned nb_beds_ = 0;  // names of rings and ports cannot be used twice
  unsigned nb_;
  RingPtr to_client_, to_server_;
  Port server_port_, client_port_;
};

struct Way {
  unsigned mtu;
  std::size_t nb_fragments;
  TxMode mode;
};
struct Workers : testing::TestWithParam<Way> {};

TEST_P(Workers, EveryPageArrivesByteForByteInTheFramesItsMtuNeeds) {
  const auto [mtu, nb_fragments, mode] = GetParam();
  Bed bed{mtu, mode};
  bed.join();
  bed.read_all();
  const auto& stats = bed.server_stats();
  EXPECT_EQ(stats.tx_pages_multicast.read() + stats.tx_pages_unicast.read(), kDataPages);
  EXPECT_EQ(stats.tx_zero_pages.read(), kZeroPages);
  EXPECT_EQ(bed.client_stats.rx_fragments.read(), nb_fragments > 1 ? kDataPages * nb_fragments : 0);
  // and one frame for each zero page and the WELCOME
  EXPECT_EQ(bed.server->stats().tx_frames.read(), kDataPages * nb_fragments + kZeroPages + 1);
  EXPECT_EQ(bed.client->stats().rx_frames.read(), bed.server->stats().tx_frames.read());
  EXPECT_EQ(bed.client->stats().rx_bytes.read(), bed.server->stats().tx_bytes.read());
  EXPECT_EQ(bed.client_stats.retries.read(), 0U);
}

TEST_P(Workers, ThePageBytesOfAFrameAreTheImagesOwnExactlyWithZeroCopy) {
  const auto [mtu, nb_fragments, mode] = GetParam();
  Bed bed{mtu, mode};
  bed.join();
  bed.guest.touch(5);
  bed.turn();
  rte_mbuf* frame = bed.intercept();
  ASSERT_NE(frame, nullptr);
  EXPECT_EQ(frame->pkt_len, wire::kPageHeaderBytes + wire::fragment_bytes(0, nb_fragments));
  EXPECT_EQ(frame->nb_segs, mode == TxMode::kZeroCopy ? 2 : 1);
  if (mode == TxMode::kZeroCopy) {
    EXPECT_TRUE(RTE_MBUF_HAS_EXTBUF(frame->next));
    EXPECT_EQ(rte_pktmbuf_mtod(frame->next, const std::byte*),
              bed.served[0]->image.page(Gfn{5}).data());
  }
  rte_pktmbuf_free(frame);  // lost: the client asks again
  for (int i = 0; i < 100'000 && !bed.guest.has(5); ++i) bed.turn();
  EXPECT_TRUE(bed.guest.has(5));
  EXPECT_EQ(bed.client_stats.retries.read(), 1U);
}

TEST_P(Workers, WithAFifthOfAllFramesLostEveryPageStillArrives) {
  const auto [mtu, nb_fragments, mode] = GetParam();
  Bed bed{mtu, mode, 0.2};
  bed.join();
  bed.read_all();
  EXPECT_GT(bed.client->stats().rx_injected_loss.read(), 0U);
  EXPECT_GT(bed.server->stats().rx_injected_loss.read(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Ring, Workers,
                         testing::Values(Way{4200, 1, TxMode::kCopy},
                                         Way{4200, 1, TxMode::kZeroCopy},
                                         Way{1500, 3, TxMode::kCopy},
                                         Way{1500, 3, TxMode::kZeroCopy},
                                         Way{9000, 1, TxMode::kZeroCopy}),
                         [](const auto& name) {
                           return fmt::format("mtu{}_{}", name.param.mtu,
                                              name.param.mode == TxMode::kCopy ? "copy" : "extbuf");
                         });

TEST(Worker, PagesWantedTogetherGoTwoAFrameAndArriveByteForByte) {
  struct Case {
    TxMode mode;
    bool sealed;
    unsigned nb_segs;
  };
  for (const auto& [mode, sealed, nb_segs] :
       {Case{TxMode::kCopy, false, 1}, Case{TxMode::kZeroCopy, false, 3},
        Case{TxMode::kCopy, true, 1}}) {
    Bed bed{9000, mode, 0, 1, sealed};
    bed.join();
    for (int i = 0; i < 2000; ++i) bed.turn();  // until the server has looked at its members
    for (const std::uint64_t page : {3U, 100U}) bed.guest.touch(page);
    bed.turn();
    rte_mbuf* frame = bed.intercept();
    ASSERT_NE(frame, nullptr);
    EXPECT_EQ(frame->pkt_len, wire::kMaxFrameBytes + (sealed ? wire::kSealBytes : 0));
    EXPECT_EQ(frame->nb_segs, nb_segs);
    bed.deliver(frame);
    for (std::uint64_t page = 0; page < kPages; ++page) bed.guest.touch(page);
    for (int i = 0; i < 100'000 && bed.guest.anybody_waits(); ++i) bed.turn();
    EXPECT_TRUE(std::ranges::equal(bed.guest.memory, bed.served[0]->image.bytes()));
    EXPECT_GT(bed.server_stats().tx_pairs.read(), kDataPages / 4);
    EXPECT_EQ(bed.client_stats.retries.read(), 0U);
  }
}

TEST(Worker, SealedFramesCarryEveryPageAndAChangedOneIsDropped) {
  for (const unsigned mtu : {4200U, 1500U}) {
    Bed bed{mtu, TxMode::kCopy, 0, 1, true};
    bed.join();
    bed.guest.touch(5);
    bed.turn();
    rte_mbuf* frame = bed.intercept();
    ASSERT_NE(frame, nullptr);
    *rte_pktmbuf_mtod_offset(frame, unsigned char*, frame->pkt_len - 40) ^= 1;
    bed.deliver(frame);
    for (int i = 0; i < 100'000 && !bed.guest.has(5); ++i) bed.turn();
    bed.read_all();
    const auto& drops = bed.client->drops().by_reason;
    for (std::size_t why = 1; why < drops.size(); ++why)
      EXPECT_EQ(drops[why].read(), why == static_cast<std::size_t>(wire::Drop::kBadSeal) ? 1U : 0U);
  }
}

/// HELLO of one more client.
rte_mbuf* hello_of_sibling(const Bed& bed, std::uint64_t image_id) {
  rte_mbuf* hello = rte_pktmbuf_alloc(bed.client_port().pool());
  const std::size_t size =
      wire::write_hello({rte_pktmbuf_mtod(hello, std::byte*), rte_pktmbuf_tailroom(hello)},
                        {image_id, 1, 0, 0}, kBroadcast, bed.client_port().mac(),
                        {.client_id = 2U, .mtu_bytes = std::uint16_t{4200}, .reserved = {}});
  rte_pktmbuf_append(hello, static_cast<std::uint16_t>(size));
  return hello;
}

/// The same, sealed.
rte_mbuf* sealed_hello_of_sibling(const Bed& bed, std::uint64_t image_id) {
  rte_mbuf* hello = hello_of_sibling(bed, image_id);
  seal_mbuf(*group_seal(), *hello);
  return hello;
}

rte_mbuf* copy_of(const Bed& bed, const rte_mbuf& frame) {
  return rte_pktmbuf_copy(&frame, bed.client_port().pool(), 0, UINT32_MAX);
}

TEST(Worker, ARequestThatCameBeforeIsRefusedThoughAnotherWasHeardThatIsNotActedUpon) {
  Bed bed{4200, TxMode::kCopy, 0, 1, true};
  bed.join();
  bed.guest.touch(5);
  bed.client->turn(bed.now);
  rte_mbuf* request = bed.intercept_request();
  ASSERT_NE(request, nullptr);
  rte_mbuf* again = copy_of(bed, *request);
  bed.inject(request);
  bed.inject(sealed_hello_of_sibling(bed, kImageId + 1));
  bed.inject(again);
  bed.server->turn(bed.now);
  EXPECT_EQ(nb_dropped(bed.server->drops(), wire::Drop::kForeignImage), 1U);
  EXPECT_EQ(nb_dropped(bed.server->drops(), wire::Drop::kReplayed), 1U);
  EXPECT_EQ(bed.server_stats().wants.read(), 1U);
}

TEST(Worker, APageThatCameBeforeIsRefusedThoughASiblingWasHeard) {
  Bed bed{4200, TxMode::kCopy, 0, 1, true};
  bed.join();
  bed.guest.touch(5);
  bed.turn();
  rte_mbuf* page = bed.intercept();
  ASSERT_NE(page, nullptr);
  rte_mbuf* again = copy_of(bed, *page);
  bed.deliver(page);
  bed.deliver(sealed_hello_of_sibling(bed, kImageId));
  bed.deliver(again);
  bed.client->turn(bed.now);
  EXPECT_TRUE(bed.guest.has(5));
  EXPECT_EQ(nb_dropped(bed.client->drops(), wire::Drop::kUnexpectedType), 1U);
  EXPECT_EQ(nb_dropped(bed.client->drops(), wire::Drop::kReplayed), 1U);
}

TEST(Worker, AStoppedClientSaysByeAndAStoppedServerToo) {
  Bed bed{4200, TxMode::kCopy};
  bed.join();
  const std::atomic<bool> stop{true};
  bed.server->run(stop, {});  // no turn, only the end
  rte_mbuf* bye = bed.intercept();
  ASSERT_NE(bye, nullptr);
  EXPECT_EQ(bye->pkt_len, sizeof(wire::EthHdr) + sizeof(wire::Header) + sizeof(wire::ByeBody));
  rte_pktmbuf_free(bye);
  bed.client->run(stop, {}, [](Nanos) {});
  bed.server->turn(bed.now);
  EXPECT_EQ(bed.server_stats().leaves.read(), 1U);
}

/// HELLO of one more client to every image; the server takes them, the client takes nothing.
void greet_every_image(Bed& bed) {
  for (std::size_t i = 0; i < bed.served.size(); ++i) {
    bed.inject(hello_of_sibling(bed, kImageId + i));
    if (i % kBurst == kBurst - 1) bed.server->turn(bed.now);
  }
}

TEST(Worker, MoreImagesThanTheTailHoldsMayAnswerAtOnce) {
  constexpr unsigned kImages = 300;
  Bed bed{4200, TxMode::kCopy, 0, kImages};
  for (int i = 0; i < 3; ++i) greet_every_image(bed);  // the ring is full: answers pile up
  for (int i = 0; i < 100; ++i) bed.turn();
  EXPECT_GT(bed.server->stats().tx_back_pressure.read(), 0U);
  std::uint64_t nb_rx_hellos = 0;
  for (const auto& served : bed.served) nb_rx_hellos += served->stats.rx_hellos.read();
  EXPECT_GE(nb_rx_hellos, 3 * kImages);
  EXPECT_GE(bed.client->stats().rx_frames.read(), 3 * kImages);
}

}  // namespace
}  // namespace snowfabric
