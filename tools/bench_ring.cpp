// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_ring.hpp"

#include <rte_cycles.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "memserver-dpdk/worker.hpp"
#include "pmd-config/app.hpp"
#include "tools/bench_bare.hpp"

namespace snowfabric::bench {
namespace {

constexpr double kBytesPerGbit = 1e9 / 8;
constexpr double kLimitedShare = 0.75;  // as ServerEngine judges whether the bucket was the limit
constexpr Nanos kBareSilence = std::chrono::seconds{2};  // a ring loses nothing: something broke

/// Both ends of the ring, and the runs over them.
class RingRuns {
 public:
  RingRuns(const RingOptions& options, RingBed& bed, Image image, Arena arena,
           const std::atomic<bool>& interrupted)
      : options_{options},
        bed_{bed},
        image_{std::move(image)},
        tree_{options.hash_tree ? std::optional{HashTree::over(image_.page_hashes())}
                                : std::nullopt},
        arena_{std::move(arena)},
        interrupted_{interrupted} {}

  Result<double> run_bare();
  Result<double> run_fabric(RingResult& out);

 private:
  [[nodiscard]] Result<std::unique_ptr<Seal>> seal() const;
  [[nodiscard]] std::size_t seal_bytes() const { return options_.sealed ? wire::kSealBytes : 0; }
  [[nodiscard]] ServerConfig server_config() const;
  [[nodiscard]] FetchConfig fetch_config(Seal* seal) const;
  [[nodiscard]] Result<double> verified(std::uint64_t nb_pages, double seconds,
                                        const std::string& what);
  void judge_flow(const Served& served, double bytes, double seconds, RingResult& out) const;

  const RingOptions& options_;
  RingBed& bed_;
  Image image_;
  std::optional<HashTree> tree_;
  Arena arena_;
  const std::atomic<bool>& interrupted_;
};

Result<double> RingRuns::run_bare() {
  arena_.clear();
  BareSender sender{image_, bed_.server(), options_.tx, 0};
  BareReceiver receiver{bed_.client(), arena_, bed_.client().nb_fragments()};
  std::atomic<bool> stop{false};
  {
    const OnOtherLcore sending{[&] { sender.run(stop, bed_.profile().idle); }};
    receiver.run(interrupted_, bed_.profile().idle, kBareSilence);
    stop.store(true);
  }
  const double seconds = static_cast<double>(receiver.last_at() - receiver.first_at()) /
                         static_cast<double>(rte_get_tsc_hz());
  return verified(receiver.nb_pages(), seconds, "bare");
}

Result<double> RingRuns::run_fabric(RingResult& out) {
  arena_.clear();
  const auto server_seal = seal(), client_seal = seal();
  if (!server_seal) return std::unexpected(server_seal.error());
  if (!client_seal) return std::unexpected(client_seal.error());
  const FetchConfig config = fetch_config(client_seal->get());
  std::vector<std::unique_ptr<Served>> served;
  served.push_back(std::make_unique<Served>(std::move(image_), server_config()));
  Fetched fetched;
  {
    const TxMode tx = options_.sealed ? TxMode::kCopy : options_.tx;
    ServerWorker worker{served, bed_.server(), tx, 0.0, options_.seed, server_seal->get()};
    std::atomic<bool> stop{false};
    {
      const OnOtherLcore serving{[&] { worker.run(stop, bed_.profile().idle); }};
      fetched = fetch(config, bed_.client(), arena_, bed_.profile().idle, interrupted_);
      stop.store(true);
    }
    out.counters = fetched.counters;
    for (const auto& info : kServerCounters)
      out.counters.emplace_back(fmt::format("server_{}", info.name),
                                (served.front()->stats.*info.member).read());
    out.counters.emplace_back("server_tx_back_pressure", worker.stats().tx_back_pressure.read());
    out.counters.emplace_back("server_tx_no_mbuf", worker.stats().tx_no_mbuf.read());
    judge_flow(*served.front(), static_cast<double>(worker.stats().tx_bytes.read()),
               fetched.seconds, out);
  }
  image_ = std::move(served.front()->image);
  return verified(fetched.nb_pages, fetched.seconds, "fabric");
}

/// @return nullptr: the frames are not to be sealed
Result<std::unique_ptr<Seal>> RingRuns::seal() const {
  constexpr GroupKey::Bytes kKey{};
  return make_seal(options_.sealed ? std::optional{GroupKey{kKey}} : std::nullopt, 1);
}

ServerConfig RingRuns::server_config() const {
  const double gbps =
      options_.max_rate_gbps > 0 ? options_.max_rate_gbps : bed_.profile().rate_max_gbps;
  ServerConfig config;
  config.mtu_bytes = static_cast<std::uint16_t>(bed_.server().mtu_bytes() - seal_bytes());
  config.frame_overhead_bytes = seal_bytes();
  config.push = options_.mode == Mode::kPush;
  config.flow.max_bytes_per_s = gbps * kBytesPerGbit;
  config.flow.initial_bytes_per_s = config.flow.max_bytes_per_s;
  return config;
}

FetchConfig RingRuns::fetch_config(Seal* seal) const {
  FetchConfig config{.mode = options_.mode, .seal = seal};
  config.engine.client_id = 1;
  config.engine.image_id = image_.image_id();
  config.engine.epoch = image_.epoch();
  config.engine.tree = tree_ ? &*tree_ : nullptr;
  config.engine.mac = bed_.client().mac();
  config.engine.mtu_bytes = static_cast<std::uint16_t>(bed_.client().mtu_bytes() - seal_bytes());
  config.engine.seed = options_.seed;
  return config;
}

void RingRuns::judge_flow(const Served& served, double bytes, double seconds,
                          RingResult& out) const {
  const auto allowed = static_cast<double>(served.stats.rate_bytes_per_s.read());
  if (bytes >= kLimitedShare * allowed * seconds) out.flow_limited = true;
}

/// What one run came to, if it was right; empties the rings for the next.
Result<double> RingRuns::verified(std::uint64_t nb_pages, double seconds, const std::string& what) {
  const unsigned nb_leaked = bed_.drain();
  if (interrupted_.load()) return fail(EINTR, fmt::format("{} run", what));
  if (nb_pages != image_.nb_pages())
    return fail(EBADMSG, fmt::format("{} run: {} of {} pages came right", what, nb_pages,
                                     image_.nb_pages()));
  if (!arena_.equals(image_))
    return fail(EBADMSG, fmt::format("{} run: bytes differ from the image", what));
  if (nb_leaked != 0)
    return fail(EIO, fmt::format("{} run: {} mbufs did not come back", what, nb_leaked));
  return static_cast<double>(nb_pages) / seconds;
}

Result<RingResult> run_pairs(const RingOptions& options, RingRuns& runs) {
  RingResult out;
  for (unsigned i = 0; i < options.runs; ++i) {
    say_round("ring", i + 1, options.runs);
    const auto bare = runs.run_bare();
    if (!bare) return std::unexpected(bare.error());
    const auto fabric = runs.run_fabric(out);
    if (!fabric) return std::unexpected(fabric.error());
    out.pairs.push_back({*bare, *fabric});
  }
  return out;
}

}  // namespace

Result<RingResult> run_ring(const RingOptions& options, Image image,
                            const std::atomic<bool>& interrupted) {
  auto arena = Arena::make(image.nb_pages());
  if (!arena) return std::unexpected(arena.error());
  auto bed = RingBed::make(options.bed);
  if (!bed) return std::unexpected(bed.error());
  RingRuns runs{options, **bed, std::move(image), std::move(*arena), interrupted};
  return run_pairs(options, runs);
}

}  // namespace snowfabric::bench
