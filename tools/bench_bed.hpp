// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <rte_ring.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fabric/base/result.hpp"
#include "pmd-config/eal.hpp"
#include "pmd-config/port.hpp"

/// What the scenarios of one process stand on: two lcores, and two ports that a pair of rings
/// joins.
namespace snowfabric::bench {

/// Pages per second of a bare run, and of the fabric's next to it.
struct Pair {
  double bare = 0, fabric = 0;
};

/// On stderr, for who waits.
void say_round(std::string_view what, unsigned round, unsigned nb_rounds);

struct BedOptions {
  unsigned mtu = 4200;
  unsigned nb_lcores = 2;
  bool no_huge = false;
  std::vector<std::string> eal_args;
};

struct RingFree {
  void operator()(rte_ring* ring) const noexcept { rte_ring_free(ring); }
};
using RingPtr = std::unique_ptr<rte_ring, RingFree>;

/// A server's port and its client's. Not to be moved once ports are open: they know its rings.
class RingBed {
 public:
  /// Takes the first CPUs that this process may use, one for each lcore. Once in a process.
  /// @return EINVAL: too few CPUs; else the error of EAL or port
  [[nodiscard]] static Result<std::unique_ptr<RingBed>> make(const BedOptions& options);

  [[nodiscard]] Port& server() noexcept { return *server_; }
  [[nodiscard]] Port& client() noexcept { return *client_; }
  [[nodiscard]] const Profile& profile() const noexcept { return profile_; }
  /// Frees what waits in the ports. @return mbufs that are then missing
  [[nodiscard]] unsigned drain() noexcept;

 private:
  RingBed(Profile profile, Eal eal) : profile_{std::move(profile)}, eal_{std::move(eal)} {}
  [[nodiscard]] Result<void> open_ports(unsigned mtu);

  Profile profile_;
  Eal eal_;
  RingPtr down_, up_;
  std::unique_ptr<Port> server_, client_;
};

/// Runs `body` on the other lcore; the destructor waits for its end.
class OnOtherLcore {
 public:
  explicit OnOtherLcore(std::function<void()> body);
  OnOtherLcore(const OnOtherLcore&) = delete;
  OnOtherLcore& operator=(const OnOtherLcore&) = delete;
  ~OnOtherLcore();

 private:
  std::function<void()> body_;
  unsigned lcore_;
};

}  // namespace snowfabric::bench
