// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/client_engine.hpp"
#include "fabric/crc32c.hpp"
#include "fabric/server_engine.hpp"
#include "tests/unit/wire_frames.hpp"

/// One engine alone, told real frames and the time. Time moves by assignment to `now`.
namespace snowfabric::test {

using wire::test_frames::want;
using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kImageId = 0x5eed;
inline constexpr MacAddr kServerMac{{2, 0, 0, 0, 0, 0xfe}};
inline constexpr std::uint64_t kMe = 1;  ///< client id of TestClient
inline constexpr MacAddr mac_of(std::uint64_t client_id) {
  return {{2, 0, 0, 0, static_cast<std::uint8_t>(client_id >> 8U),
           static_cast<std::uint8_t>(client_id)}};
}

/// A frame and the bytes it borrows from.
struct Parsed {
  explicit Parsed(Bytes ethernet) : bytes{std::move(ethernet)} {
    EXPECT_EQ(wire::parse(std::span{bytes}.subspan(sizeof(wire::EthHdr)), frame),
              wire::Drop::kNone);
  }
  Parsed(Parsed&&) noexcept = default;
  Parsed(const Parsed&) = delete;
  Parsed& operator=(const Parsed&) = delete;
  Bytes bytes;
  wire::Frame frame;
};

template <class Write>
Parsed made_by(Write&& write) {
  return Parsed{wire::test_frames::made_by(std::forward<Write>(write))};
}

/// What a PAGE frame has of a page, and says of it.
struct PagePart {
  Bytes bytes;  ///< of the whole page
  std::uint32_t checksum = crc32c(bytes);
  std::size_t fragment = 0, nb_fragments = 1;
};
inline Parsed page_frame(const wire::Identity& who, const MacAddr& src, std::uint64_t gfn,
                         const PagePart& part, std::uint8_t flags, std::uint32_t seq = 0) {
  return made_by([&](auto out) {
    const std::size_t header =
        wire::write_page_header(out, who, group_address(who.image_id), src, Gfn{gfn}, part.checksum,
                                part.fragment, part.nb_fragments, flags, seq);
    const std::size_t size = wire::fragment_bytes(part.fragment, part.nb_fragments);
    std::memcpy(out.data() + header,
                part.bytes.data() + part.fragment * wire::fragment_stride(part.nb_fragments), size);
    return header + size;
  });
}

/// A client's totals: frames of 4154 bytes, times as it measured them.
inline wire::ReportBody report(std::uint64_t clock_us, std::uint32_t rx_frames = 0,
                               std::uint32_t lost = 0, std::uint32_t srtt_us = 0,
                               std::uint32_t rttvar_us = 0) {
  return {.clock_us = clock_us,
          .rx_bytes = std::uint64_t{rx_frames} * wire::page_wire_bytes(1),
          .rx_frames = rx_frames,
          .lost = lost,
          .srtt_us = srtt_us,
          .rttvar_us = rttvar_us};
}

/// The bucket is never the limit.
inline ServerConfig unlimited(std::uint16_t mtu_bytes = 9000) {
  return {.mtu_bytes = mtu_bytes, .burst_bytes = 1U << 30U};
}

/// A server engine over an image whose pages all have checksum 0.
class TestServer {
 public:
  explicit TestServer(std::uint64_t nb_pages, const ServerConfig& config = unlimited(),
                      std::vector<std::uint64_t> zero_words = {})
      : crcs_(nb_pages), zeros_{std::move(zero_words)} {
    zeros_.resize((nb_pages + 63) / 64);
    engine.emplace(config,
                   ImageView{.image_id = kImageId,
                             .epoch = 1,
                             .nb_pages = nb_pages,
                             .crc32c = crcs_,
                             .zero_words = zeros_},
                   stats);
  }

  wire::Drop hello(std::uint64_t client_id) {
    return give(client_id, made_by([&](auto out) {
                  return wire::write_hello(
                      out, who, kServerMac, mac_of(client_id),
                      {.client_id = client_id, .mtu_bytes = 9000, .reserved = {}}, flags);
                }));
  }
  wire::Drop request(std::uint64_t client_id, std::vector<wire::WantEntry> wants,
                     const wire::ReportBody& totals = report(0)) {
    return give(client_id, made_by([&](auto out) {
                  return wire::write_request(out, who, kServerMac, mac_of(client_id),
                                             {.client_id = client_id, .report = totals}, wants,
                                             flags);
                }));
  }
  wire::Drop bye(std::uint64_t client_id) {
    return give(client_id, made_by([&](auto out) {
                  return wire::write_bye(out, who, kServerMac, mac_of(client_id), client_id, 0, 0);
                }));
  }

  /// @param from  whose address it comes from
  wire::Drop give(std::uint64_t from, const Parsed& parsed) {
    return engine->on_frame(parsed.frame, mac_of(from), now);
  }

  /// Everything the engine wants sent now.
  std::vector<ServerTx> drain() {
    std::vector<ServerTx> all;
    ServerTx tx;
    while (engine->next(tx, now)) all.push_back(tx);
    return all;
  }
  /// The same, PAGE frames only, as page numbers.
  std::vector<std::uint64_t> drain_pages() {
    std::vector<std::uint64_t> pages;
    for (const ServerTx& tx : drain()) {
      if (tx.type != wire::FrameType::kPage) continue;
      pages.push_back(tx.range.first.value);
      if (tx.second) pages.push_back(tx.second->value);
    }
    return pages;
  }
  /// The one frame it wants sent now.
  ServerTx only() {
    const auto all = drain();
    EXPECT_EQ(all.size(), 1U);
    return all.empty() ? ServerTx{} : all.front();
  }

  ServerStats stats;
  std::optional<ServerEngine> engine;
  Nanos now{0};
  wire::Identity who{kImageId, 1, 1, 0};  ///< in the frames that clients send
  std::uint8_t flags = 0;                 ///< in HELLO and REQUEST

 private:
  std::vector<std::uint32_t> crcs_;
  std::vector<std::uint64_t> zeros_;
};

/// A server with these members, their WELCOMEs taken.
struct JoinedServer : TestServer {
  explicit JoinedServer(std::uint64_t nb_pages, const ServerConfig& config = unlimited(),
                        std::vector<std::uint64_t> zeros = {}, std::uint64_t nb_clients = 3)
      : TestServer{nb_pages, config, std::move(zeros)} {
    for (std::uint64_t id = 1; id <= nb_clients; ++id) hello(id);
    drain();
  }
  /// Measured by every client, so that window and retry guard are known: 3 ms and 1 ms.
  void settle_window() {
    for (std::uint64_t id = 1; id <= 3; ++id) request(id, {}, report(1, 0, 0, 2000, 500));
    now += std::chrono::milliseconds{20};  // past the next tick
    drain();
  }
  static constexpr Nanos kWindow{std::chrono::milliseconds{3}};
  static constexpr Nanos kGuard{std::chrono::milliseconds{1}};
};

/// Bytes of a page that no other page has.
inline Bytes page_bytes(std::uint64_t gfn) {
  Bytes page(kPageSize);
  for (std::size_t i = 0; i < kPageSize; i += sizeof gfn) {
    const std::uint64_t word = gfn * 0x1'0001 + i;
    std::memcpy(page.data() + i, &word, sizeof word);
  }
  return page;
}

/// A client engine and what it sends.
class TestClient {
 public:
  explicit TestClient(const ClientConfig& config = defaults()) : engine{config, stats} {}
  static ClientConfig defaults() {
    ClientConfig config;
    config.client_id = kMe;
    config.image_id = kImageId;
    config.epoch = 1;
    config.mac = mac_of(kMe);
    return config;
  }

  wire::Drop welcome(std::uint64_t nb_pages = 1024, std::uint64_t client_id = kMe,
                     std::uint16_t mtu_bytes = 9000) {
    return give(made_by([&](auto out) {
      return wire::write_welcome(
          out, server, mac_of(client_id), kServerMac,
          {.client_id = client_id,
           .nb_pages = nb_pages,
           .report_interval_us = 50'000U,
           .mtu_bytes = mtu_bytes,
           .nb_fragments = static_cast<std::uint8_t>(wire::fragments_for_mtu(mtu_bytes)),
           .reserved = 0});
    }));
  }
  /// Gives one PAGE frame of the group. @return the page, when it is whole
  std::optional<PageArrival> page(std::uint64_t gfn, std::size_t fragment = 0,
                                  std::size_t nb_fragments = 1) {
    return page_of(gfn, page_bytes(gfn), fragment, nb_fragments);
  }
  /// The same with other bytes; the checksum is always that of page_bytes().
  std::optional<PageArrival> page_of(std::uint64_t gfn, const Bytes& bytes, std::size_t fragment,
                                     std::size_t nb_fragments) {
    const PagePart part{bytes, crc32c(page_bytes(gfn)), fragment, nb_fragments};
    last_.emplace(page_frame(server, kServerMac, gfn, part, wire::kFlagSequenced, seq++));
    drop = give(*last_);
    if (drop != wire::Drop::kNone) return std::nullopt;
    return engine.take_page(last_->frame, now, drop);
  }
  wire::Drop give(const Parsed& parsed) {
    return engine.on_frame(parsed.frame, kServerMac, parsed.bytes.size(), now);
  }

  /// Lets time-outs fire and takes every frame the engine wants sent now.
  std::vector<Parsed> send() {
    engine.expire(now);
    std::vector<Parsed> sent;
    Bytes buffer(sizeof(wire::ControlBuffer));
    while (const std::size_t size = engine.next(buffer, now))
      sent.emplace_back(Bytes{buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(size)});
    return sent;
  }
  /// The same, as the wants of all REQUESTs.
  std::vector<wire::WantEntry> send_wants() {
    std::vector<wire::WantEntry> wants;
    for (const Parsed& parsed : send())
      if (parsed.frame.type == wire::FrameType::kRequest)
        for (std::size_t i = 0; i < parsed.frame.nb_wants(); ++i)
          wants.push_back(parsed.frame.want(i));
    return wants;
  }
  /// As the poll loop does it, while nobody answers.
  void send_until(Nanos until) {
    for (; now < until; now += std::chrono::milliseconds{1}) send();
  }
  void join(std::uint64_t nb_pages = 1024, std::uint16_t mtu_bytes = 9000) {
    send();
    ASSERT_EQ(welcome(nb_pages, kMe, mtu_bytes), wire::Drop::kNone);
    send();  // the first report
  }
  bool demand(std::uint64_t gfn) { return engine.want(Gfn{gfn}, wire::Priority::kDemand, now); }
  bool prefetch(std::uint64_t gfn) { return engine.want(Gfn{gfn}, wire::Priority::kPrefetch, now); }

  ClientStats stats;
  ClientEngine engine;
  Nanos now{0};
  wire::Identity server{kImageId, 1, 1, 0};  ///< in the frames that come
  std::uint32_t seq = 0;                     ///< of the next frame of the group
  wire::Drop drop{};                         ///< verdict of the last page

 private:
  std::optional<Parsed> last_;
};

}  // namespace snowfabric::test
