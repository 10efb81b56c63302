// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <queue>
#include <vector>

#include "fabric/base/prng.hpp"
#include "fabric/client_engine.hpp"
#include "fabric/crc32c.hpp"
#include "fabric/server_engine.hpp"

namespace snowfabric::sim {

using Bytes = std::vector<std::byte>;

/// An image of seeded random pages, a share of them zero.
struct TestImage {
  TestImage(std::uint64_t nb_pages, double zero_share, std::uint64_t seed);
  [[nodiscard]] ImageView view() const;
  [[nodiscard]] std::span<const std::byte> page(Gfn p) const {
    return std::span{bytes}.subspan(p.value * kPageSize, kPageSize);
  }
  Bytes bytes;
  std::vector<std::uint32_t> crc;
  std::vector<std::uint64_t> zeros;
  std::uint64_t nb_pages, nb_data_pages = 0;
};

/// The way from the switch to one receiver.
struct Link {
  Nanos delay{std::chrono::microseconds{10}};
  Nanos jitter{0};                 ///< added uniformly; more than a frame gap reorders
  double loss = 0, duplicate = 0;  ///< independent per frame
  double bytes_per_s = 1.25e9;
  std::size_t queue_bytes = 4U << 20;
  bool down = false;
  std::function<bool(const wire::Frame&)> drop{};  ///< scripted: true = this frame is lost
};

/// One memtap host with guests, each of which touches pages in an order, one fault at a time.
struct Host {
  ClientStats stats;
  DropCounters drops;
  std::unique_ptr<ClientEngine> engine;
  Link link;
  MacAddr mac{};
  std::vector<bool> present;
  struct Guest {
    std::vector<std::uint64_t> order{};
    std::size_t next = 0;
    bool waiting = false;
    Nanos done_at = kNever;
  };
  std::vector<Guest> guests;
  std::uint64_t installed = 0, wrong_bytes = 0;
  unsigned prefetch = 0;
  bool alive = true;
  Nanos done_at = kNever;
  [[nodiscard]] bool done() const;
};

/// A server and hosts around one switch, in virtual time; everything random comes from the seed.
class Lab {
 public:
  Lab(const TestImage& image, const ServerConfig& server, std::uint64_t seed);

  Host& add_host(const Link& link, const std::function<void(ClientConfig&)>& tune = {});
  static void add_guest(Host& host, std::vector<std::uint64_t> order);
  void kill_server();
  /// A new process with the same image: empty state, another incarnation.
  void start_server(std::uint32_t incarnation);
  /// Puts a raw frame (Ethernet header included) on the wire towards a host or the server.
  void inject(const MacAddr& dst, Bytes frame);
  void at(Nanos when, std::function<void()> what);
  /// Runs until every guest of every live host is done, or the limit passes. @return all done
  bool run(Nanos limit);
  void run_until(Nanos when);

  [[nodiscard]] Nanos now() const { return now_; }
  [[nodiscard]] ServerEngine& server() { return *server_; }
  [[nodiscard]] const ServerStats& server_stats() const { return *stats_; }

  Link server_link;  ///< from the switch to the server
  double server_tx_bytes_per_s = 1.25e9;
  std::uint64_t wire_bytes = 0;  ///< everything the server sent
  DropCounters server_drops;
  std::map<std::uint64_t, unsigned> multicasts;  ///< page -> whole-page multicasts begun
  std::vector<std::unique_ptr<Host>> hosts;

 private:
  struct Event {
    Nanos when;
    std::uint64_t order;
    std::function<void()> run;
    bool operator<(const Event& other) const {
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  void send(const Bytes& frame);
  void deliver(Link& link, Nanos& busy_until, std::function<void()> receive, std::size_t size,
               const Bytes& frame);
  void receive_at_host(Host& host, const Bytes& frame);
  void receive_at_server(const Bytes& frame);
  void poll_server();
  void poll_host(Host& host);
  void run_guests(Host& host);
  void install(Host& host, Gfn page, std::span<const std::byte> bytes);
  void step(Nanos limit);
  [[nodiscard]] bool all_done() const;

  const TestImage& image_;
  ServerConfig server_config_;
  std::unique_ptr<ServerStats> stats_ = std::make_unique<ServerStats>();
  std::unique_ptr<ServerEngine> server_;
  Prng prng_;
  Nanos now_{0}, server_busy_until_{0};
  Nanos server_rx_busy_{0};
  std::map<const Host*, Nanos> host_busy_;
  std::priority_queue<Event> events_;
  std::uint64_t next_order_ = 0;
};

inline constexpr MacAddr kServerMac{{0x02, 0, 0, 0, 0, 0xfe}};

std::vector<std::uint64_t> sequential(std::uint64_t nb_pages);
std::vector<std::uint64_t> shuffled(std::uint64_t nb_pages, std::uint64_t seed);

}  // namespace snowfabric::sim
