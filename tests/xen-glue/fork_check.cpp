// SPDX-License-Identifier: BSD-3-Clause
// For a dom0: forks a running domain into a shell on the same host, without the fabric, and says
// how long what took. usage: xen_fork PARENT SHELL SECONDS (domids; the shell is created paused)
#include <poll.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <fmt/format.h>
#include <sys/mman.h>

#include "memtap-dpdk/xen_guest.hpp"
#include "xen-glue/frozen_domain.hpp"
#include "xen-glue/libxen_calls.hpp"

namespace {

using namespace snowfabric;
using Clock = std::chrono::steady_clock;

/// Pages to push between two looks at the faults.
constexpr std::uint64_t kPushPages = 16;

double since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

int complain(const Error& error) {
  fmt::print(stderr, "{}: {}\n", error.what, std::strerror(error.errnum));
  return 1;
}

/// The parent's frozen memory, and what becomes of the clone.
class Fork {
 public:
  Fork(XenGuest& guest, const std::byte* image, std::uint64_t nb_pages)
      : guest_{guest}, image_{image}, nb_pages_{nb_pages} {}

  /// @return false: an install failed
  bool serve(std::chrono::seconds time) {
    const auto began = Clock::now();
    while (Clock::now() - began < time) {
      std::array<Gfn, 32> faults;
      const std::size_t nb_faults = guest_.poll_faults(faults);
      for (std::size_t i = 0; i < nb_faults; ++i)
        if (!put(faults[i].value, 1)) return false;
      if (nb_faults > 0) continue;
      // Demand alone for the first half, then what is left.
      if (guest_.started() && 2 * (Clock::now() - began) > time && pushed_ < nb_pages_) {
        if (!push()) return false;
        continue;
      }
      pollfd ready{guest_.fault_fd(), POLLIN, 0};
      poll(&ready, 1, 100);
    }
    return pushed_ == nb_pages_;
  }

 private:
  bool put(std::uint64_t first, std::uint64_t nb_pages) {
    return guest_.install(Gfn{first}, {image_ + first * kPageSize, nb_pages * kPageSize}) ==
           Install::kDone;
  }
  bool push() {
    const std::uint64_t nb_pages = std::min(kPushPages, nb_pages_ - pushed_);
    const bool ok = put(pushed_, nb_pages);
    pushed_ += nb_pages;
    return ok;
  }
  XenGuest& guest_;
  const std::byte* image_;
  std::uint64_t nb_pages_;
  std::uint64_t pushed_ = 0;
};

int fork_domain(xen::XenCalls& calls, xen::DomId parent, xen::DomId shell,
                std::chrono::seconds time) {
  auto began = Clock::now();
  auto frozen = xen::FrozenDomain::copy(xen::Domain{calls, parent}, std::chrono::seconds{20});
  if (!frozen) return complain(frozen.error());
  fmt::print("frozen: {} pages, {} missing, {} eager, context {} bytes, {:.2f} s, pause {:.2f} s\n",
             frozen->nb_pages, frozen->missing.size(), frozen->state.eager.size(),
             frozen->state.context.size(), since(began),
             std::chrono::duration<double>(frozen->pause).count());
  const std::size_t nb_bytes = frozen->nb_pages * kPageSize;
  const auto* image = static_cast<const std::byte*>(
      mmap(nullptr, nb_bytes, PROT_READ, MAP_SHARED, frozen->memory.get(), 0));
  auto file = PresenceFile::create(fmt::format("/dev/shm/fork_check_{}", getpid()),
                                   {.image_id = 1, .nb_pages = frozen->nb_pages, .epoch = 1});
  if (!file) return complain(file.error());
  began = Clock::now();
  auto& state = frozen->state;
  auto guest = XenGuest::adopt(xen::Domain{calls, shell}, std::move(*file),
                               {std::move(state.context), state.tsc, std::move(state.eager)});
  if (!guest) return complain(guest.error());
  const double evict_s = since(began);
  fmt::print("evicted: {:.2f} s, {:.0f} pages/s\n", evict_s,
             static_cast<double>(frozen->nb_pages) / evict_s);
  const bool complete = Fork{**guest, image, frozen->nb_pages}.serve(time);
  const GuestCounters& counters = (*guest)->counters();
  fmt::print("served: complete {}, faults {}, installed {}, raced {}, replaced {}, removed {} {}\n",
             complete, counters.faults.read(), counters.installed_pages.read(),
             counters.faults_raced.read(), counters.eexist.read(), counters.removed_pages.read(),
             (*guest)->trouble());
  return complete ? 0 : 1;
}

xen::DomId domid(const char* text) {
  return xen::DomId{static_cast<std::uint16_t>(std::strtoul(text, nullptr, 10))};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto calls = snowfabric::xen::open_libxen();
  if (!calls) return complain(calls.error());
  return fork_domain(**calls, domid(argv[1]), domid(argv[2]),
                     std::chrono::seconds{std::strtol(argv[3], nullptr, 10)});
}
