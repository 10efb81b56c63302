// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_serve.hpp"

#include <rte_cycles.h>
#include <rte_mbuf.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "fabric/poll_loop.hpp"
#include "memserver-dpdk/worker.hpp"
#include "tools/bench_bare.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::uint64_t kClientId = 1;
constexpr std::uint64_t kRound = 512;   // pages, of which all frames fit into the ring
constexpr unsigned kMaxTurns = 10'000;  // a ring loses nothing: something broke
constexpr double kNoLimit = 1e13;       // bytes/s: the server's CPU is what is measured

/// All pages, in runs of `nb_pages` neighbours, the runs in random order.
std::vector<std::uint32_t> shuffled(std::uint64_t nb_pages, std::uint16_t range,
                                    std::uint64_t seed) {
  std::vector<std::uint32_t> firsts(nb_pages / range);
  for (std::size_t i = 0; i < firsts.size(); ++i) firsts[i] = static_cast<std::uint32_t>(i * range);
  std::ranges::shuffle(firsts, std::mt19937_64{seed});
  std::vector<std::uint32_t> order(firsts.size() * range);
  for (std::size_t i = 0; i < order.size(); ++i)
    order[i] = firsts[i / range] + static_cast<std::uint32_t>(i % range);
  return order;
}

/// The other end: takes what comes, and asks.
class Asker {
 public:
  Asker(const Port& port, const MacAddr& server, const Image& image,
        std::span<const std::uint32_t> order, std::uint16_t range)
      : port_{port}, queue_{port.queue()}, image_{image}, order_{order}, range_{range} {
    const wire::WantEntry want{
        .first = {}, .nb_pages = range, .priority = 0, .flags = 0, .fragments = 0, .reserved = {}};
    const wire::Identity identity{image.image_id(), image.epoch(), 1, image.space()};
    nb_request_ = wire::write_request(request_, identity, server, port.mac(),
                                      {.client_id = kClientId, .report = {}}, {&want, 1});
  }

  /// Takes all that waits, with no look at a page's bytes.
  void take() noexcept {
    std::array<rte_mbuf*, kBurst> burst;
    while (const std::uint16_t nb_rx = queue_.rx_burst(burst)) {
      for (const rte_mbuf* frame : std::span{burst}.first(nb_rx))
        nb_taken_ += frame->pkt_len > kPageSize ? 1 : 0;
      rte_pktmbuf_free_bulk(burst.data(), nb_rx);
    }
  }

  /// Takes all that waits and compares it with the image.
  void take_and_check() noexcept {
    std::array<rte_mbuf*, kBurst> burst;
    while (const std::uint16_t nb_rx = queue_.rx_burst(burst)) {
      for (const rte_mbuf* frame : std::span{burst}.first(nb_rx))
        if (frame->pkt_len > kPageSize) check(*frame);
      rte_pktmbuf_free_bulk(burst.data(), nb_rx);
    }
  }

  /// A round of REQUESTs. @return false: there are no mbufs
  [[nodiscard]] bool ask() noexcept {
    std::array<rte_mbuf*, kRound> requests;
    const std::span<rte_mbuf*> all{requests.data(), kRound / range_};
    if (rte_pktmbuf_alloc_bulk(port_.pool(), all.data(), static_cast<unsigned>(all.size())) != 0)
      return false;
    for (rte_mbuf* mbuf : all) write(*mbuf);
    const std::uint16_t nb_tx = queue_.tx_burst(all);
    rte_pktmbuf_free_bulk(all.data() + nb_tx, static_cast<unsigned>(all.size()) - nb_tx);
    nb_asked_ += all.size() * range_;
    return true;
  }

  [[nodiscard]] std::uint64_t nb_asked() const noexcept { return nb_asked_; }
  [[nodiscard]] std::uint64_t nb_taken() const noexcept { return nb_taken_; }
  [[nodiscard]] std::uint64_t nb_wrong() const noexcept { return nb_wrong_; }

 private:
  void write(rte_mbuf& mbuf) noexcept {
    auto* const out = rte_pktmbuf_mtod(&mbuf, std::byte*);
    std::memcpy(out, request_.data(), nb_request_);
    const Be64 first{order_[place_]};
    std::memcpy(out + nb_request_ - sizeof(wire::WantEntry), &first, sizeof first);
    mbuf.data_len = static_cast<std::uint16_t>(nb_request_);
    mbuf.pkt_len = mbuf.data_len;
    place_ += range_;
    if (place_ == order_.size()) place_ = 0;
  }

  void check(const rte_mbuf& frame) noexcept {
    std::array<std::byte, wire::kPageHeaderBytes + kPageSize> bytes;
    wire::Frame parsed;
    const auto payload = std::span{bytes}.subspan(sizeof(wire::EthHdr));
    const bool fits = copy_segments(frame, 0, bytes) == bytes.size() &&
                      wire::parse(payload, parsed) == wire::Drop::kNone &&
                      parsed.type == wire::FrameType::kPage;
    const std::uint64_t page = fits ? parsed.page.gfn.host() : 0;
    const bool right = fits && page == order_[nb_taken_ % order_.size()] &&
                       std::ranges::equal(std::span{bytes}.last(kPageSize), image_.page(Gfn{page}));
    ++nb_taken_;
    nb_wrong_ += right ? 0 : 1;
  }

  const Port& port_;
  EthPort queue_;
  const Image& image_;
  std::span<const std::uint32_t> order_;
  std::uint16_t range_;
  std::array<std::byte, 256> request_{};
  std::size_t nb_request_ = 0, place_ = 0;
  std::uint64_t nb_asked_ = 0, nb_taken_ = 0, nb_wrong_ = 0;
};

/// The runs of one case.
class ServeRuns {
 public:
  ServeRuns(const ServeOptions& options, const ServeCase& what, RingBed& bed, Image& image,
            const std::atomic<bool>& interrupted)
      : options_{options},
        what_{what},
        bed_{bed},
        image_{image},
        interrupted_{interrupted},
        order_{shuffled(image.nb_pages(), what.nb_pages, options.seed)} {}

  Result<ServeResult> run() {
    ServeResult out{what_, {}};
    if (const auto right = check_all(); !right) return std::unexpected(right.error());
    for (unsigned i = 0; i < options_.runs; ++i) {
      say_round(what_.name, i + 1, options_.runs);
      const auto bare = run_bare();
      if (!bare) return std::unexpected(bare.error());
      const auto served = run_server();
      if (!served) return std::unexpected(served.error());
      out.pairs.push_back({*bare, *served});
    }
    return out;
  }

 private:
  [[nodiscard]] Result<void> check_all();
  [[nodiscard]] Result<double> run_bare();
  [[nodiscard]] Result<double> run_server();
  [[nodiscard]] Result<void> with_server(const std::function<void(ServerWorker&, Asker&)>& body);
  template <class Ask, class Turn>
  [[nodiscard]] double measure(Asker& asker, Ask&& ask, Turn&& turn);
  [[nodiscard]] Result<void> nothing_left();
  [[nodiscard]] Result<double> went_on(double rate, std::string_view who) const;

  const ServeOptions& options_;
  const ServeCase& what_;
  RingBed& bed_;
  Image& image_;
  const std::atomic<bool>& interrupted_;
  std::vector<std::uint32_t> order_;
};

/// Lets a new server answer rounds of requests, as `body` wants; all must come, and come right.
Result<void> ServeRuns::with_server(const std::function<void(ServerWorker&, Asker&)>& body) {
  ServerConfig config;
  config.mtu_bytes = static_cast<std::uint16_t>(bed_.server().mtu_bytes());
  config.flow.max_bytes_per_s = config.flow.initial_bytes_per_s = kNoLimit;
  config.initial_window =
      config.min_window;  // all pages take longer: none is asked for in it again
  std::vector<std::unique_ptr<Served>> served;
  served.push_back(std::make_unique<Served>(std::move(image_), config));
  Asker asker{bed_.client(), bed_.server().mac(), served.front()->image, order_, what_.nb_pages};
  {
    ServerWorker worker{served, bed_.server(), what_.tx, 0.0, options_.seed};
    body(worker, asker);
  }
  image_ = std::move(served.front()->image);
  if (auto whole = nothing_left(); !whole) return whole;
  const bool all = asker.nb_asked() != 0 && asker.nb_taken() == asker.nb_asked();
  if (all && asker.nb_wrong() == 0) return {};
  return fail(EBADMSG,
              fmt::format("{}: {} pages were asked for, {} came, {} of them wrong", what_.name,
                          asker.nb_asked(), asker.nb_taken(), asker.nb_wrong()));
}

/// All pages once, by the server and by the bare sender, each compared.
Result<void> ServeRuns::check_all() {
  BareSender sender{image_, bed_.server(), what_.tx, 0};
  sender.repeat(order_);
  Asker taker{bed_.client(), bed_.server().mac(), image_, order_, what_.nb_pages};
  for (unsigned turns = 0; taker.nb_taken() < order_.size() && turns < kMaxTurns; ++turns) {
    sender.turn();
    taker.take_and_check();
  }
  if (taker.nb_taken() < order_.size() || taker.nb_wrong() != 0)
    return fail(EBADMSG, fmt::format("{}, bare: {} of {} pages came, {} of them wrong", what_.name,
                                     taker.nb_taken(), order_.size(), taker.nb_wrong()));
  return with_server([&](ServerWorker& worker, Asker& asker) {
    const TscClock clock;
    while (asker.nb_asked() < order_.size() && !interrupted_.load() && asker.ask())
      for (unsigned turns = 0; asker.nb_taken() < asker.nb_asked() && turns < kMaxTurns; ++turns) {
        worker.turn(clock.now());
        asker.take_and_check();
      }
  });
}

/// Pages per second of `turn` and of taking what it sends, asking not counted; 0: it has stopped.
template <class Ask, class Turn>
double ServeRuns::measure(Asker& asker, Ask&& ask, Turn&& turn) {
  const auto enough =
      static_cast<std::uint64_t>(options_.seconds * static_cast<double>(rte_get_tsc_hz()));
  const std::uint64_t before = asker.nb_taken();
  std::uint64_t cycles = 0;
  while (cycles < enough && !interrupted_.load()) {
    if (!ask()) return 0;
    const std::uint64_t due = asker.nb_taken() + kRound;
    const std::uint64_t began = rte_rdtsc();
    for (unsigned turns = 0; asker.nb_taken() < due; ++turns) {
      if (turns == kMaxTurns) return 0;
      turn();
      asker.take();
    }
    cycles += rte_rdtsc() - began;
  }
  return static_cast<double>(asker.nb_taken() - before) * static_cast<double>(rte_get_tsc_hz()) /
         static_cast<double>(cycles);
}

Result<double> ServeRuns::run_bare() {
  BareSender sender{image_, bed_.server(), what_.tx, 0};
  sender.repeat(order_);
  Asker taker{bed_.client(), bed_.server().mac(), image_, order_, what_.nb_pages};
  const double rate = measure(taker, [] { return true; }, [&] { sender.turn(); });
  if (const auto whole = nothing_left(); !whole) return std::unexpected(whole.error());
  return went_on(rate, "bare sender");
}

Result<double> ServeRuns::run_server() {
  double rate = 0;
  const auto served = with_server([&](ServerWorker& worker, Asker& asker) {
    const TscClock clock;
    rate = measure(asker, [&] { return asker.ask(); }, [&] { worker.turn(clock.now()); });
  });
  if (!served) return std::unexpected(served.error());
  return went_on(rate, "server");
}

Result<double> ServeRuns::went_on(double rate, std::string_view who) const {
  if (rate > 0) return rate;
  return fail(ETIMEDOUT, fmt::format("{}: the {} stopped amid a run", what_.name, who));
}

Result<void> ServeRuns::nothing_left() {
  const unsigned nb_leaked = bed_.drain();
  if (interrupted_.load()) return fail(EINTR, what_.name);
  if (nb_leaked != 0)
    return fail(EIO, fmt::format("{}: {} mbufs did not come back", what_.name, nb_leaked));
  return {};
}

}  // namespace

Result<std::vector<ServeResult>> run_serve(const ServeOptions& options, Image image,
                                           const std::atomic<bool>& interrupted) {
  auto bed = RingBed::make(options.bed);
  if (!bed) return std::unexpected(bed.error());
  const std::array<ServeCase, 4> cases{{
      {kServeCases[0], 1, TxMode::kZeroCopy},
      {kServeCases[1], options.range_pages, TxMode::kZeroCopy},
      {kServeCases[2], 1, TxMode::kCopy},
      {kServeCases[3], options.range_pages, TxMode::kCopy},
  }};
  std::vector<ServeResult> results;
  for (const ServeCase& what : cases) {
    if (!options.only.empty() && options.only != what.name) continue;
    auto result = ServeRuns{options, what, **bed, image, interrupted}.run();
    if (!result) return std::unexpected(result.error());
    results.push_back(std::move(*result));
  }
  return results;
}

}  // namespace snowfabric::bench
