// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_bed.hpp"

#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <sched.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include <fmt/format.h>

#include "pmd-config/app.hpp"
#include "tools/bench_bare.hpp"

namespace snowfabric::bench {
namespace {

constexpr unsigned kRingFrames = 1024;

Result<RingPtr> make_ring(const char* name) {
  RingPtr ring{rte_ring_create(name, kRingFrames, SOCKET_ID_ANY, RING_F_SP_ENQ | RING_F_SC_DEQ)};
  if (ring == nullptr)
    return fail(rte_errno, fmt::format("rte_ring_create({}): {}", name, rte_strerror(rte_errno)));
  return ring;
}

Result<std::unique_ptr<Port>> open_port(const Profile& profile, unsigned mtu,
                                        const std::string& name, rte_ring* rx, rte_ring* tx) {
  if (rte_eth_from_rings(name.c_str(), &rx, 1, &tx, 1, 0) < 0)
    return fail(rte_errno,
                fmt::format("rte_eth_from_rings({}): {}", name, rte_strerror(rte_errno)));
  auto port =
      Port::open({.profile = profile, .name = "net_ring_" + name, .mtu = mtu, .groups = {}});
  if (!port) return std::unexpected(port.error());
  return std::make_unique<Port>(std::move(*port));
}

/// "0@A,1@B,...": the first CPUs this process may use.
Result<std::string> lcores(unsigned nb_lcores) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::string all;
  unsigned found = 0;
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE && found < nb_lcores; ++cpu)
    if (CPU_ISSET(cpu, &allowed))
      all += fmt::format("{}{}@{}", found == 0 ? "" : ",", found, cpu), ++found;
  if (found < nb_lcores)
    return fail(EINVAL, fmt::format("{} CPUs are needed, and {} may be used", nb_lcores, found));
  return all;
}

}  // namespace

void say_round(std::string_view what, unsigned round, unsigned nb_rounds) {
  fmt::print(stderr, "fabric-bench: {}: round {} of {}\n", what, round, nb_rounds);
}

Result<std::unique_ptr<RingBed>> RingBed::make(const BedOptions& options) {
  auto profile = load_profile("net_ring");
  if (!profile) return std::unexpected(profile.error());
  profile->eal_args.clear();  // the ports are made here, crosswise
  if (!options.no_huge) profile->hugepages_mb = 1;
  const auto cpus = lcores(options.nb_lcores);
  if (!cpus) return std::unexpected(cpus.error());
  auto eal = Eal::init({.program = "bench-node",
                        .profile = *profile,
                        .iface = {},
                        .mtu = options.mtu,
                        .lcores = *cpus,
                        .file_prefix = {},
                        .extra_memory_mb = no_huge_mb(*profile, options.mtu),
                        .extra_args = options.eal_args});
  if (!eal) return std::unexpected(eal.error());
  std::unique_ptr<RingBed> bed{new RingBed{std::move(*profile), std::move(*eal)}};
  if (const auto open = bed->open_ports(options.mtu); !open) return std::unexpected(open.error());
  return bed;
}

Result<void> RingBed::open_ports(unsigned mtu) {
  auto down = make_ring("bench_down"), up = make_ring("bench_up");
  if (!down || !up) return std::unexpected((down ? up : down).error());
  down_ = std::move(*down);
  up_ = std::move(*up);
  auto server = open_port(profile_, mtu, "server", up_.get(), down_.get());
  if (!server) return std::unexpected(server.error());
  server_ = std::move(*server);
  auto client = open_port(profile_, mtu, "client", down_.get(), up_.get());
  if (!client) return std::unexpected(client.error());
  client_ = std::move(*client);
  return {};
}

unsigned RingBed::drain() noexcept {
  bench::drain(*client_);
  bench::drain(*server_);
  return client_->mbufs_in_use() + server_->mbufs_in_use();
}

OnOtherLcore::OnOtherLcore(std::function<void()> body)
    : body_{std::move(body)}, lcore_{rte_get_next_lcore(-1U, 1, 0)} {
  constexpr auto call = [](void* of) {
    (*static_cast<std::function<void()>*>(of))();
    return 0;
  };
  rte_eal_remote_launch(call, &body_, lcore_);
}

OnOtherLcore::~OnOtherLcore() { rte_eal_wait_lcore(lcore_); }

}  // namespace snowfabric::bench
