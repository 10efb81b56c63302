// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/prng.hpp"
#include "fabric/base/time.hpp"
#include "fabric/hash_tree.hpp"
#include "fabric/loss_meter.hpp"
#include "fabric/page_map.hpp"
#include "fabric/page_queue.hpp"
#include "fabric/reassembler.hpp"
#include "fabric/rto.hpp"
#include "fabric/stats.hpp"
#include "fabric/timer_wheel.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

struct ClientConfig {
  std::uint64_t client_id = 0;  ///< drawn at random by each start of the process
  std::uint64_t image_id = 0;
  std::uint32_t epoch = 0;
  std::uint8_t space = 0;
  MacAddr mac{};                    ///< of our port
  std::optional<MacAddr> server{};  ///< unset: HELLO goes to the broadcast address
  /// Of the image, free of misfits: pages that do not fit it are refused. Borrowed; nullptr: none
  /// are.
  const HashTree* tree = nullptr;
  std::uint16_t mtu_bytes = 9000;
  std::uint64_t seed = 1;  ///< of the retry jitter
  /// A larger image is refused: what a WELCOME costs in tables of its user's must be bounded.
  std::uint64_t max_pages = std::uint64_t{1} << 26U;
  std::uint32_t max_inflight = 4096;  ///< pages asked for at once; demand displaces prefetch
  std::size_t partial_pages = 4096;   ///< pages being put together, where they come in parts
  unsigned prefetch_attempts = 3;     ///< then a prefetched page is left to be faulted
  Nanos hello_interval{std::chrono::milliseconds{100}};
  Nanos silence{std::chrono::milliseconds{500}};  ///< unanswered so long: HELLO again
  Nanos repair_after{std::chrono::seconds{1}};    ///< unanswered so long: the siblings are asked
  Nanos give_up{std::chrono::seconds{10}};        ///< unanswered so long: the server is dead
  Nanos page_give_up{std::chrono::seconds{30}};   ///< the same for one page of a live server
  RtoConfig rto{};
};

enum class ClientState : std::uint8_t {
  kJoining,      ///< no WELCOME yet
  kJoined,       ///< geometry known
  kServerDead,   ///< nothing heard for `give_up` while somebody waited; HELLO goes on
  kMtuTooSmall,  ///< the server's page frames do not fit our port: ask no more
};

/// A page that is complete and whose checksum matched, and whose hash, if there is a tree.
struct PageArrival {
  Gfn page{};
  std::span<const std::byte, kPageSize> bytes;  ///< borrows until the next call of the engine
  bool demanded = false;                        ///< a guest waits for it: install at once
};

/// Decides what memtap asks for and what it does with what comes: join, requests, retries,
/// reassembly, loss and rate report. Pure: no I/O, no clock, no allocation but at WELCOME. One
/// lcore calls it. Which pages the host still needs is the caller's knowledge.
class ClientEngine {
 public:
  ClientEngine(const ClientConfig& config, ClientStats& stats);

  /// Checks a parsed frame against image, epoch and geometry, counts it in the group sequence, and
  /// deals with it entirely unless it is PAGE, ZEROS or ABSENT, which the caller passes on below,
  /// or the REQUEST of a sibling, which is Repairs'.
  /// @param frame_bytes  of the whole Ethernet frame, for the rate report
  /// @return why it was dropped, or kNone
  /// @throw std::bad_alloc at a WELCOME, which has then changed nothing; the end of memtap, whose
  ///        loop is noexcept
  wire::Drop on_frame(const wire::Frame& frame, const MacAddr& src, std::size_t frame_bytes,
                      Nanos now);
  /// Takes the page that a PAGE frame is at (Frame::next_page), which some clone needs.
  /// @return the arrival once the page is whole; `drop` tells why it was refused
  std::optional<PageArrival> take_page(const wire::Frame& frame, Nanos now,
                                       wire::Drop& drop) noexcept;
  /// Takes note of such a page that no clone needs.
  void on_duplicate(const wire::Frame& frame) noexcept;
  /// Of a range of a ZEROS or ABSENT frame, how many pages may be believed, from its front on: with
  /// a tree, those that are zero, and no page of the image is absent.
  [[nodiscard]] std::uint32_t nb_believed(wire::FrameType type, PageRange range) const noexcept;
  /// Takes one range of such a frame. @return whether a demanded page is in it
  bool take_range(wire::FrameType type, PageRange range, Nanos now) noexcept;

  /// Asks for a page. A page in flight is not asked for twice; demand raises a prefetch.
  /// @pre page is in the image @return false when the table is full: call again later
  bool want(Gfn page, wire::Priority priority, Nanos now) noexcept;
  /// Somebody waits for all that is prefetched: a silent server is as bad as with a demand.
  void await_prefetch(bool awaited, Nanos now) noexcept;
  /// The page is no longer wanted (all its guests are gone).
  void forget(Gfn page) noexcept;
  [[nodiscard]] bool in_flight(Gfn page) const noexcept {
    return flight_of_.find(page) != PageMap::kNone;
  }
  [[nodiscard]] bool demanded(Gfn page) const noexcept {
    const std::uint32_t id = flight_of_.find(page);
    return id != PageMap::kNone && flights_[id].priority == wire::Priority::kDemand;
  }
  [[nodiscard]] std::size_t nb_in_flight() const noexcept { return flights_.size() - free_.size(); }
  [[nodiscard]] std::size_t nb_demands() const noexcept { return nb_demands_; }  ///< of these
  /// Calls `each(Gfn)` for every demanded page in flight.
  template <class Each>
  void for_each_demand(Each&& each) const {
    for (const Flight& flight : flights_)
      if (flight.used && flight.priority == wire::Priority::kDemand) each(flight.page);
  }
  /// The same for those that cannot be had: that a live server has not delivered within
  /// `page_give_up`, or, when it is dead, no sibling within `give_up`.
  template <class Each>
  void for_each_unanswered(Each&& each) const {
    if (nb_overdue_ == 0) return;
    for (const Flight& flight : flights_)
      if (flight.overdue) each(flight.page);
  }

  /// Finds what has timed out. Of the time since the last call no more than `silence`, or a
  /// quarter of `give_up`, counts: a host that stood still asked nobody. Call only when every frame
  /// that has arrived was passed in: an answer that waits in the receive ring of a starved host is
  /// not late, and asking again floods the group.
  void expire(Nanos now) noexcept;
  /// Writes the next frame to send, if any. @param out at least wire::ControlBuffer's size
  /// @return its bytes, 0 = nothing to send now
  std::size_t next(std::span<std::byte> out, Nanos now) noexcept;
  [[nodiscard]] bool has_output(Nanos now) const noexcept;
  /// The last frame of an orderly stop. @return its bytes
  std::size_t write_bye(std::span<std::byte> out) const noexcept;
  /// Time of the next call to expire() or next() that could do something if no frame or fault comes
  /// before.
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;

  [[nodiscard]] ClientState state() const noexcept { return state_; }
  /// The server's last word was that its client table is full; HELLO goes on.
  [[nodiscard]] bool refused() const noexcept { return refused_; }
  /// Of the image; 0 = not welcomed yet.
  [[nodiscard]] std::uint64_t nb_pages() const noexcept { return nb_pages_; }
  [[nodiscard]] std::uint16_t server_mtu_bytes() const noexcept { return server_mtu_bytes_; }
  [[nodiscard]] const MacAddr& server() const noexcept { return server_; }
  [[nodiscard]] const ClientConfig& config() const noexcept { return config_; }
  [[nodiscard]] const wire::Identity& identity() const noexcept { return identity_; }
  [[nodiscard]] ClientStats& stats() noexcept { return stats_; }
  /// Frames a page. @pre joined once
  [[nodiscard]] std::size_t nb_fragments() const noexcept { return nb_fragments_; }
  /// The server is silent, and so the siblings are asked.
  [[nodiscard]] bool asks_siblings() const noexcept { return asks_siblings_; }

 private:
  /// Of the HELLOs that are repeated one in so many goes to all: docs/wire-format.md, section 1.
  static constexpr unsigned kHellosABroadcast = 8;

  struct Flight {
    Gfn page{};
    Nanos first_asked{0};
    Nanos demanded_since{0};
    wire::Priority priority{};
    std::uint8_t attempts = 0;
    bool used = false;
    bool to_send = false;
    bool timed_out = false;  ///< asked, and no answer came in time
    bool raised = false;     ///< asked for as a prefetch first: its time is neither's
    bool overdue = false;    ///< a demand that cannot be had
  };

  wire::Drop on_welcome(const wire::Frame& frame, const MacAddr& src, Nanos now);
  wire::Drop on_bye(const wire::Frame& frame, Nanos now) noexcept;
  [[nodiscard]] wire::Drop on_sibling(const wire::Frame& frame) noexcept;
  void hear(Nanos now) noexcept;
  void on_incarnation(const wire::Frame& frame, Nanos now) noexcept;
  void ask_again_soon(Nanos now) noexcept;
  void finish(std::uint32_t id, Nanos now) noexcept;
  void release(std::uint32_t id) noexcept;
  [[nodiscard]] bool make_room(wire::Priority priority) noexcept;
  void queue(std::uint32_t id, Nanos now) noexcept;
  void on_timer(std::uint32_t id, Nanos now) noexcept;
  void see_overdue(Flight& flight, Nanos now) noexcept;
  [[nodiscard]] bool waiting() const noexcept {
    return state_ == ClientState::kJoining || nb_demands_ != 0 || awaits_prefetch_;
  }
  void add_demand(Nanos now) noexcept;
  void forgive(Nanos standstill, Nanos now) noexcept;
  void watch_server(Nanos now) noexcept;
  void greet(Nanos now) noexcept;
  std::size_t write_hello(std::span<std::byte> out, Nanos now) noexcept;
  std::size_t write_request(std::span<std::byte> out, Nanos now) noexcept;
  void schedule_report(bool is_quiet, Nanos now) noexcept;
  void end_quiet(Nanos now) noexcept;
  [[nodiscard]] std::size_t max_wants() const noexcept;
  std::size_t collect_wants(std::span<wire::WantEntry> wants, Nanos now) noexcept;
  void mark_sent(std::uint32_t id, Nanos now) noexcept;
  [[nodiscard]] std::uint8_t abilities() const noexcept;
  [[nodiscard]] wire::ReportBody report(Nanos now) const noexcept;

  ClientConfig config_;
  ClientStats& stats_;
  wire::Identity identity_;
  MacAddr server_;
  ClientState state_ = ClientState::kJoining;
  bool refused_ = false, asks_siblings_ = false;
  std::uint16_t server_mtu_bytes_ = 0;
  std::size_t nb_fragments_ = 1;
  Nanos report_interval_{std::chrono::milliseconds{50}};

  std::uint64_t nb_pages_ = 0;
  std::vector<Flight> flights_;
  PageMap flight_of_;
  std::vector<std::uint32_t> free_;
  std::array<RingBuffer<std::uint32_t>, 2>
      send_queues_;  // flights, by priority; may hold stale ids
  TimerWheel timers_;
  std::uint32_t nb_demands_ = 0, nb_overdue_ = 0;
  bool awaits_prefetch_ = false;

  Reassembler reassembler_{1};  // made anew at WELCOME where pages come in fragments
  LossMeter loss_;
  std::array<RtoEstimator, 2> rto_;  // by priority: prefetch waits longer at the server
  Prng prng_;
  std::uint64_t rx_bytes_ = 0;
  Nanos last_heard_ = kNever;      // any frame of our image
  Nanos last_sequenced_ = kNever;  // frame to the group
  Nanos waiting_since_ = kNever;   // something has been asked since then
  Nanos expired_at_{0};
  Nanos next_hello_ = kNever;
  unsigned nb_hellos_ = 0;    // of this round of greeting
  unsigned broadcast_phase_;  // which of them go to all: not the same of all clients
  Nanos next_report_ = kNever, reported_at_ = kNever;
  std::uint32_t reported_frames_ = 0;
  bool is_quiet_ = false;  // the last report had nothing to tell
};

}  // namespace snowfabric
