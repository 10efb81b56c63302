// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_ring.hpp"

#include <rte_cycles.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_ring.h>
#include <sched.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
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
constexpr unsigned kRingFrames = 1024;
constexpr double kLimitedShare = 0.75;  // as ServerEngine judges whether the bucket was the limit
constexpr Nanos kBareSilence = std::chrono::seconds{2};  // a ring loses nothing: something broke

struct RingFree {
  void operator()(rte_ring* ring) const noexcept { rte_ring_free(ring); }
};
using RingPtr = std::unique_ptr<rte_ring, RingFree>;

Result<RingPtr> make_ring(const char* name) {
  RingPtr ring{rte_ring_create(name, kRingFrames, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ)};
  if (ring == nullptr)
    return fail(rte_errno, fmt::format("rte_ring_create({}): {}", name, rte_strerror(rte_errno)));
  return ring;
}

Result<Port> open_port(const Profile& profile, unsigned mtu, const std::string& name, rte_ring* rx,
                       rte_ring* tx) {
  if (rte_eth_from_rings(name.c_str(), &rx, 1, &tx, 1, 0) < 0)
    return fail(rte_errno,
                fmt::format("rte_eth_from_rings({}): {}", name, rte_strerror(rte_errno)));
  return Port::open({.profile = profile, .name = "net_ring_" + name, .mtu = mtu, .groups = {}});
}

/// "0@A,1@B": the first two CPUs this process may use, one for each side.
Result<std::string> two_lcores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::string lcores;
  int found = 0;
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE && found < 2; ++cpu)
    if (CPU_ISSET(cpu, &allowed))
      lcores += fmt::format("{}{}@{}", found == 0 ? "" : ",", found, cpu), ++found;
  if (found < 2)
    return fail(EINVAL, "two CPUs are needed, one for each side, and only one may be used");
  return lcores;
}

/// Runs `body` on the other lcore; the destructor waits for its end.
class OnOtherLcore {
 public:
  explicit OnOtherLcore(std::function<void()> body)
      : body_{std::move(body)}, lcore_{rte_get_next_lcore(-1U, 1, 0)} {
    rte_eal_remote_launch(call, &body_, lcore_);
  }
  OnOtherLcore(const OnOtherLcore&) = delete;
  OnOtherLcore& operator=(const OnOtherLcore&) = delete;
  ~OnOtherLcore() { rte_eal_wait_lcore(lcore_); }

 private:
  static int call(void* body) {
    (*static_cast<std::function<void()>*>(body))();
    return 0;
  }
  std::function<void()> body_;
  unsigned lcore_;
};

/// Both ends of the ring, and the runs over them.
class RingBed {
 public:
  RingBed(const RingOptions& options, const Profile& profile, Image image, Arena arena, Port server,
          Port client, const std::atomic<bool>& interrupted)
      : options_{options},
        profile_{profile},
        image_{std::move(image)},
        tree_{options.hash_tree ? std::optional{HashTree::over(image_.page_hashes())}
                                : std::nullopt},
        arena_{std::move(arena)},
        server_{std::move(server)},
        client_{std::move(client)},
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
  const Profile& profile_;
  Image image_;
  std::optional<HashTree> tree_;
  Arena arena_;
  Port server_, client_;
  const std::atomic<bool>& interrupted_;
};

Result<double> RingBed::run_bare() {
  arena_.clear();
  BareSender sender{image_, server_, options_.tx, 0};
  BareReceiver receiver{client_, arena_, client_.nb_fragments()};
  std::atomic<bool> stop{false};
  {
    const OnOtherLcore sending{[&] { sender.run(stop, profile_.idle); }};
    receiver.run(interrupted_, profile_.idle, kBareSilence);
    stop.store(true);
  }
  const double seconds = static_cast<double>(receiver.last_at() - receiver.first_at()) /
                         static_cast<double>(rte_get_tsc_hz());
  return verified(receiver.nb_pages(), seconds, "bare");
}

Result<double> RingBed::run_fabric(RingResult& out) {
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
    ServerWorker worker{served, server_, tx, 0.0, options_.seed, server_seal->get()};
    std::atomic<bool> stop{false};
    {
      const OnOtherLcore serving{[&] { worker.run(stop, profile_.idle); }};
      fetched = fetch(config, client_, arena_, profile_.idle, interrupted_);
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
Result<std::unique_ptr<Seal>> RingBed::seal() const {
  constexpr GroupKey::Bytes kKey{};
  return make_seal(options_.sealed ? std::optional{GroupKey{kKey}} : std::nullopt, 1);
}

ServerConfig RingBed::server_config() const {
  const double gbps = options_.max_rate_gbps > 0 ? options_.max_rate_gbps : profile_.rate_max_gbps;
  ServerConfig config;
  config.mtu_bytes = static_cast<std::uint16_t>(server_.mtu_bytes() - seal_bytes());
  config.frame_overhead_bytes = seal_bytes();
  config.push = options_.mode == Mode::kPush;
  config.flow.max_bytes_per_s = gbps * kBytesPerGbit;
  config.flow.initial_bytes_per_s = config.flow.max_bytes_per_s;
  return config;
}

FetchConfig RingBed::fetch_config(Seal* seal) const {
  FetchConfig config{.mode = options_.mode, .seal = seal};
  config.engine.client_id = 1;
  config.engine.image_id = image_.image_id();
  config.engine.epoch = image_.epoch();
  config.engine.tree = tree_ ? &*tree_ : nullptr;
  config.engine.mac = client_.mac();
  config.engine.mtu_bytes = static_cast<std::uint16_t>(client_.mtu_bytes() - seal_bytes());
  config.engine.seed = options_.seed;
  return config;
}

void RingBed::judge_flow(const Served& served, double bytes, double seconds,
                         RingResult& out) const {
  const auto allowed = static_cast<double>(served.stats.rate_bytes_per_s.read());
  if (bytes >= kLimitedShare * allowed * seconds) out.flow_limited = true;
}

/// What one run came to, if it was right; empties the rings for the next.
Result<double> RingBed::verified(std::uint64_t nb_pages, double seconds, const std::string& what) {
  drain(client_);
  drain(server_);
  if (interrupted_.load()) return fail(EINTR, fmt::format("{} run", what));
  if (nb_pages != image_.nb_pages())
    return fail(EBADMSG, fmt::format("{} run: {} of {} pages came right", what, nb_pages,
                                     image_.nb_pages()));
  if (!arena_.equals(image_))
    return fail(EBADMSG, fmt::format("{} run: bytes differ from the image", what));
  if (const unsigned leaked = server_.mbufs_in_use() + client_.mbufs_in_use(); leaked != 0)
    return fail(EIO, fmt::format("{} run: {} mbufs did not come back", what, leaked));
  return static_cast<double>(nb_pages) / seconds;
}

Result<RingResult> run_pairs(const RingOptions& options, RingBed& bed) {
  RingResult out;
  for (unsigned i = 0; i < options.runs; ++i) {
    const auto bare = bed.run_bare();
    if (!bare) return std::unexpected(bare.error());
    const auto fabric = bed.run_fabric(out);
    if (!fabric) return std::unexpected(fabric.error());
    out.pairs.push_back({*bare, *fabric});
  }
  return out;
}

}  // namespace

Result<RingResult> run_ring(const RingOptions& options, Image image,
                            const std::atomic<bool>& interrupted) {
  auto profile = load_profile("net_ring");
  if (!profile) return std::unexpected(profile.error());
  profile->eal_args.clear();  // the ports are made here, crosswise
  if (!options.no_huge) profile->hugepages_mb = 1;
  const auto lcores = two_lcores();
  if (!lcores) return std::unexpected(lcores.error());
  auto arena = Arena::make(image.nb_pages());
  if (!arena) return std::unexpected(arena.error());
  const auto eal = Eal::init({.program = "fabric-bench",
                              .profile = *profile,
                              .iface = {},
                              .mtu = options.mtu,
                              .lcores = *lcores,
                              .file_prefix = {},
                              .extra_memory_mb = no_huge_mb(*profile, options.mtu),
                              .extra_args = options.eal_args});
  if (!eal) return std::unexpected(eal.error());
  const auto down = make_ring("bench_down");
  const auto up = make_ring("bench_up");
  if (!down || !up) return std::unexpected((down ? up : down).error());
  auto server = open_port(*profile, options.mtu, "server", up->get(), down->get());
  if (!server) return std::unexpected(server.error());
  auto client = open_port(*profile, options.mtu, "client", down->get(), up->get());
  if (!client) return std::unexpected(client.error());
  RingBed bed{options,           *profile,           std::move(image),
              std::move(*arena), std::move(*server), std::move(*client),
              interrupted};
  return run_pairs(options, bed);
}

}  // namespace snowfabric::bench
