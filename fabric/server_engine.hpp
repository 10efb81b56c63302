// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/mac.hpp"
#include "fabric/base/time.hpp"
#include "fabric/client_table.hpp"
#include "fabric/end_game.hpp"
#include "fabric/flow_control.hpp"
#include "fabric/page_queue.hpp"
#include "fabric/page_table.hpp"
#include "fabric/stats.hpp"
#include "fabric/token_bucket.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

/// What the engine knows of a frozen image. The spans borrow and must outlive the engine.
struct ImageView {
  std::uint64_t image_id = 0;
  std::uint32_t epoch = 0;
  std::uint8_t space = 0;
  std::uint64_t nb_pages = 0;
  std::span<const std::uint32_t> crc32c;      ///< nb_pages
  std::span<const std::uint64_t> zero_words;  ///< bit p % 64 of word p / 64: page p is all zero

  [[nodiscard]] bool is_zero(Gfn page) const noexcept {
    return ((zero_words[page.value / 64] >> (page.value % 64)) & 1U) != 0;
  }
};

struct ServerConfig {
  std::uint32_t incarnation = 1;  ///< drawn at random by each start of the process; not 0
  std::uint16_t mtu_bytes = 9000;
  std::size_t frame_overhead_bytes =
      0;                        ///< that a frame has on the wire beyond what is written here
  bool push = false;            ///< send pages nobody asked for at spare rate
  double push_bytes_per_s = 0;  ///< that those take of it at most; 0: all
  std::size_t max_clients = 4096;
  std::size_t burst_bytes = 64 * 1024;  ///< token bucket depth at least,
  Nanos burst_time{0};                  ///< and so long at the rate: what a turn may take
  Nanos report_interval{std::chrono::milliseconds{50}};
  Nanos client_timeout{std::chrono::seconds{5}};
  Nanos initial_window{std::chrono::milliseconds{1}};  ///< lockstep window before any measurement
  Nanos min_window{std::chrono::microseconds{50}};
  Nanos max_window{std::chrono::milliseconds{20}};
  FlowConfig flow{};
  EndGameConfig end_game{};
};

/// A frame the server wants sent. Page data is not in it: the caller puts image bytes
/// [fragment_stride * fragment, + fragment_bytes) of page range.first behind the header, and behind
/// them those of the second page, if there is one.
struct ServerTx {
  wire::FrameType type{};
  MacAddr dst{};
  std::uint8_t flags = 0;
  std::uint8_t fragment = 0;
  std::uint32_t seq = 0;
  PageRange range{};            ///< kPage: one page; kZeros, kAbsent: the range
  std::optional<Gfn> second{};  ///< kPage: a page that goes in the same frame
  std::uint64_t client_id = 0;  ///< kWelcome; kBye: who is refused, 0 = the server leaves
};

/// Decides what the memserver sends: lockstep, priorities, flow control, end game. Pure: no I/O, no
/// clock, no allocation after construction. One lcore calls it. Paper: TOCS 2011 section 4.4.
class ServerEngine {
 public:
  /// @param image  at most 2^32 - 1 pages
  /// @pre wire::fragments_for_mtu(config.mtu_bytes) != 0
  ServerEngine(const ServerConfig& config, const ImageView& image, ServerStats& stats);

  /// Asks the cache for what on_frame() and write() will need of a page, if the image has it.
  void prefetch(Gfn page) const noexcept {
    pages_.prefetch(page);
    if (page.value < image_.nb_pages) __builtin_prefetch(&image_.crc32c[page.value]);
  }

  /// The page that is likely to be sent after the one next() gave last.
  [[nodiscard]] std::optional<Gfn> upcoming() const noexcept {
    if (ahead_.fragments != 0) return ahead_.page;
    for (const PageQueue& queue : queues_)
      if (!queue.empty()) return Gfn{queue.front()};
    return std::nullopt;
  }

  /// Takes one parsed frame from a client. @return why it was dropped, or kNone
  wire::Drop on_frame(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept;

  /// The next frame to send, if there is one and the bucket allows it.
  [[nodiscard]] bool next(ServerTx& out, Nanos now) noexcept;

  /// Marks a member until it leaves: FlowRule::kTagged goes by those. @return false: it is none
  bool tag(std::uint64_t client_id) noexcept;

  /// Whether to send from now on what nobody asked for, as ServerConfig::push: a load generator's
  /// members join first.
  void set_push(bool push) noexcept { config_.push = push; }

  /// The last frame of an orderly stop: BYE to the group.
  [[nodiscard]] ServerTx bye() noexcept;

  /// Writes the headers (and the whole frame, unless it is a page) of `tx`. @return bytes written
  std::size_t write(const ServerTx& tx, const MacAddr& src,
                    std::span<std::byte> out) const noexcept;

  /// Time of the next call to next() that could do something if no frame comes before.
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;

  [[nodiscard]] std::size_t nb_fragments() const noexcept { return nb_fragments_; }
  [[nodiscard]] const ImageView& image() const noexcept { return image_; }
  [[nodiscard]] const wire::Identity& identity() const noexcept { return identity_; }
  [[nodiscard]] bool has_clients() const noexcept { return clients_.size() != 0; }

 private:
  struct Train {  ///< the page being sent, fragment by fragment
    Gfn page{};
    std::uint8_t fragments = 0;
    bool multicast = true;
    bool alone = false;   // in its frame
    bool pushed = false;  // nobody asked for it
    MacAddr dst{};
  };

  wire::Drop on_hello(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept;
  wire::Drop on_request(const wire::Frame& frame, const MacAddr& src, Nanos now) noexcept;
  void take_report(Client& client, const wire::ReportBody& report) noexcept;
  [[nodiscard]] bool was_push_limited_since(const Client& client) const noexcept;
  static void take_loss(Client& client, const wire::ReportBody& report) noexcept;
  void on_want(ClientTable::Index who, Gfn page, const wire::WantEntry& entry, Nanos now) noexcept;
  [[nodiscard]] bool enqueue(Gfn page, std::uint8_t priority) noexcept;
  ClientTable::Index join(std::uint64_t client_id, const MacAddr& src, Nanos now) noexcept;
  void take_abilities(Client& client, const wire::Frame& frame) noexcept;
  [[nodiscard]] bool is_late(ClientTable::Index who, const PageSlot& slot) noexcept;
  void answer_absent(const MacAddr& dst, PageRange range) noexcept;
  void push_control(const ServerTx& tx) noexcept;

  void next_train(Train& out, Nanos now) noexcept;
  [[nodiscard]] bool pop_wanted(Gfn& page) noexcept;
  [[nodiscard]] bool has_wanted() const noexcept;
  [[nodiscard]] bool has_pushed() const noexcept;
  [[nodiscard]] bool pop_pushed(Gfn& page) noexcept;
  void set_train(Train& out, Gfn page, Nanos now) noexcept;
  [[nodiscard]] bool is_pair() const noexcept;
  void charge_push(std::size_t frame_bytes, bool pair) noexcept;
  void send_from_train(ServerTx& out, bool pair) noexcept;
  [[nodiscard]] PageRange zero_run(Gfn page) const noexcept;
  [[nodiscard]] wire::PageKey key_of(Gfn page) const noexcept {
    return {page, image_.crc32c[page.value]};
  }
  [[nodiscard]] std::size_t train_frame_bytes(bool pair) const noexcept;

  void tick(Nanos now) noexcept;
  void set_rate(double bytes_per_s) noexcept;
  void set_window(double window_ns, double srtt_ns) noexcept;
  void update_end_game() noexcept;

  ServerConfig config_;
  ImageView image_;
  ServerStats& stats_;
  wire::Identity identity_;
  MacAddr group_;
  std::size_t nb_fragments_;
  std::uint8_t all_fragments_;
  std::uint64_t nb_data_pages_ = 0;  // pages that are not zero

  ClientTable clients_;
  PageTable pages_;
  std::array<PageQueue, 2> queues_;  // by wire::Priority
  RingBuffer<ServerTx> control_;
  Train train_;
  Train ahead_;         // the page after it, which may go in the same frame
  bool pairs_ = false;  // all members take two pages a frame, as of the last tick or join
  std::uint64_t push_cursor_ = 0;

  TokenBucket bucket_, push_bucket_;
  EndGame end_game_;
  double nb_lacking_ = 0;  // members, in the mean, that a frame to all does not reach
  Nanos window_, retry_guard_{0};
  Nanos newest_join_ = kNever;
  Nanos next_tick_ = kNever;
  std::uint32_t seq_ = 0;
};

}  // namespace snowfabric
