// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fabric/base/prng.hpp"
#include "fabric/client_engine.hpp"
#include "fabric/repairs.hpp"
#include "fabric/server_engine.hpp"
#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/host_loop.hpp"
#include "sim/guest.hpp"
#include "sim/judge.hpp"
#include "sim/link.hpp"
#include "sim/test_image.hpp"

namespace snowfabric::sim {

/// Ethernet frame on its way; receivers share it.
using FramePtr = std::shared_ptr<const Bytes>;

inline constexpr MacAddr kServerMac{{0x02, 0, 0, 0, 0, 0xfe}};

/// What a process costs in time. Frames that find the receive ring full are lost.
struct HostSpeed {
  Nanos turn{std::chrono::microseconds{1}};
  Nanos frame{0};  ///< received, on top
  std::size_t rx_ring = 4096;
};

/// A process with a port at the switch: the server or a memtap. It runs in turns, as a poll loop
/// does, but only when there is something to do.
struct Party {
  Party(const LinkConfig& to_switch, const LinkConfig& from_switch)
      : up{to_switch}, down{from_switch} {}
  Link up, down;  ///< to the switch, and from it
  HostSpeed speed;
  MacAddr mac{};
  std::string name;
  Nanos paused_until{0};
  std::deque<FramePtr> rx;
  /// Frames carried to it are in one of these, in `rx`, or under way.
  std::uint64_t rx_taken = 0, rx_ring_full = 0, rx_died_with_it = 0, rx_refused_by_card = 0;
  std::uint64_t nb_under_way = 0;
  std::uint64_t rx_bytes = 0;  ///< of frames that came to `rx`
  /// Frames carried from it are at the switch, refused by it for damage, or under way there.
  std::uint64_t tx_switched = 0, tx_refused_by_switch = 0, nb_to_switch = 0;
  Nanos busy_until{0}, turn_at = Nanos::max();
};

struct ServerParty : Party {
  using Party::Party;
  std::unique_ptr<ServerStats> stats;
  std::unique_ptr<ServerEngine> engine;  ///< nullptr: dead
  DropCounters drops;
};

/// What came to a host, which it may hand on.
class Kept final : public RepairSource {
 public:
  explicit Kept(const TestImage& image) : image_{image}, has_(image.nb_pages) {}
  [[nodiscard]] std::vector<bool>& pages() noexcept { return has_; }
  [[nodiscard]] bool knows(Gfn page) const noexcept override { return has_[page.value]; }
  [[nodiscard]] std::optional<std::span<const std::byte, kPageSize>> bytes(
      Gfn page) const noexcept override {
    if (image_.is_zero(page)) return std::nullopt;
    return image_.page(page).first<kPageSize>();
  }
  [[nodiscard]] PageRange zero_run(Gfn page) const noexcept override { return {page, 1}; }

 private:
  const TestImage& image_;
  std::vector<bool> has_;
};

/// A memtap and the clones of its host.
struct Memtap : Party {
  using Party::Party;
  ClientConfig config;
  unsigned prefetch = 0;  ///< neighbours asked for with a fault, at most
  bool keeps = false;     ///< pages, and hands them on
  std::vector<std::unique_ptr<Guest>> guests;

  /// The process: nullptr while it is dead.
  struct Process {
    explicit Process(const ClientConfig& start) : engine{start, stats}, loop{engine} {}
    ClientStats stats;
    HostStats host_stats;
    ClientEngine engine;
    HostLoop loop;
    std::unique_ptr<Host> host;  ///< since the join
    std::unique_ptr<Kept> kept;  ///< likewise
  };
  std::unique_ptr<Process> process;

  [[nodiscard]] ClientEngine& engine() const { return process->engine; }
  [[nodiscard]] const ClientStats& stats() const { return process->stats; }
  [[nodiscard]] const DropCounters& drops() const { return process->loop.drops(); }
  /// Every guest is done, or dead, or was told that a page cannot be had.
  [[nodiscard]] bool settled() const;
};

/// A server and memtaps around one switch, in virtual time; everything random comes from the seed.
class Lab {
 public:
  /// @param image  borrowed
  Lab(const TestImage& image, const ServerConfig& server, std::uint64_t seed);

  /// @param link  from the switch; the way to it is perfect until somebody sets `up`
  /// @param starts  false: its process comes by start_memtap()
  Memtap& add_memtap(const LinkConfig& link, const std::function<void(ClientConfig&)>& tune = {},
                     bool starts = true);
  /// @param comes  false: it comes by attach_guest()
  Guest& add_guest(Memtap& memtap, std::vector<std::uint64_t> order, Guest::Pace pace = {},
                   bool comes = true);
  void attach_guest(Memtap& memtap, Guest& guest);

  void kill_server();
  /// A new process with the same image: empty state, another incarnation.
  void start_server(std::uint32_t incarnation);
  /// Its guests stay, and wait.
  void kill_memtap(Memtap& memtap);
  /// A new process, which takes over the guests there are.
  void start_memtap(Memtap& memtap);
  void kill_guest(Memtap& memtap, Guest& guest);
  void pause(Party& party, Nanos until);

  /// Puts a raw frame (Ethernet header included) on the way to a port.
  void inject(Party& to, Bytes frame);
  void at(Nanos when, std::function<void()> what);
  /// Runs until every guest is settled, or the limit passes. @return all are
  bool run(Nanos limit);
  void run_until(Nanos when);

  [[nodiscard]] Nanos now() const { return now_; }
  [[nodiscard]] bool settled() const;
  [[nodiscard]] ServerParty& server() { return server_; }
  [[nodiscard]] const ServerStats& server_stats() const { return *server_.stats; }
  [[nodiscard]] std::span<const std::unique_ptr<Memtap>> memtaps() const { return memtaps_; }
  [[nodiscard]] Judge& judge() { return judge_; }
  /// Everything the server sent.
  [[nodiscard]] std::uint64_t wire_bytes() const { return wire_bytes_; }
  /// A memtap that no server has answered ends, as the program does; false: it asks on.
  bool unanswered_end = false;
  /// Called after each turn of a party; may be empty.
  std::function<void(const Party&)> after_turn;
  /// Says each event that a reader of a failed run wants to know; unset: nothing is said.
  std::function<void(Nanos, const std::string&)> trace;
  /// And each frame that is sent, and what happens to it but that it comes.
  bool trace_frames = false;

 private:
  struct Event {
    Party* party;    // a frame of it or for it, or a turn of it; nullptr: a script
    FramePtr frame;  // nullptr: a turn, or a script
    bool at_switch = false;
    std::size_t script = 0;
  };
  void step();
  void on_event(Nanos when, const Event& event);
  void add(Nanos when, Event event) { moments_[when].push_back(std::move(event)); }
  void schedule(Party& party, Nanos when);
  void turn(Party& party);
  void serve_guests(Memtap& memtap);
  static void give(Memtap& memtap, Guest& guest);
  static void empty_ring(Party& party);
  static FramePtr take(Party& party);
  [[nodiscard]] Nanos turn_server();
  [[nodiscard]] Nanos turn_memtap(Memtap& memtap);
  [[nodiscard]] FramePtr made_by_server(const ServerTx& tx) const;
  Nanos run_guests(Memtap& memtap);
  void send_frames(Memtap& memtap);
  void send(Party& from, FramePtr frame);
  void switch_frame(Party& from, const FramePtr& frame);
  void carry(Party& to, const FramePtr& frame);
  [[nodiscard]] FramePtr corrupt(const Bytes& frame);
  void say(const std::string& what) const;
  void say_sent(const Party& from, const Bytes& frame, unsigned nb_copies) const;
  void say_lost(const Party& to, const Bytes& frame, std::string_view how) const;

  const TestImage& image_;
  ServerConfig server_config_;
  Prng prng_;
  Judge judge_;
  ServerParty server_;
  std::vector<std::unique_ptr<Memtap>> memtaps_;
  Nanos now_{0};
  std::uint64_t wire_bytes_ = 0;
  /// What is to come, by time; of one time in the order in which it was added. A frame to all is as
  /// many events of one time: no search for each.
  std::map<Nanos, std::vector<Event>> moments_;
  std::deque<std::function<void()>> scripts_;
};

}  // namespace snowfabric::sim
