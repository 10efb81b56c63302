// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_install.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "fabric/crc32c.hpp"
#include "memtap-dpdk/uffd_guest.hpp"
#include "memtap-dpdk/uffd_ioctl.hpp"
#include "tools/bench_missing.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::size_t kFaultBurst = 32;

/// vCPUs that touch pages, each its own share of an order. They take no signals: a thread that does
/// while it waits faults on its page once more.
class Vcpus {
 public:
  Vcpus(const MissingMemory& memory, std::span<const std::uint32_t> order, unsigned nb_threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned i = 0; i < nb_threads; ++i)
      threads_.emplace_back([&memory, order, i, nb_threads] {
        for (std::size_t at = i; at < order.size(); at += nb_threads)
          (void)*static_cast<const volatile std::byte*>(memory.page(order[at]));
      });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

 private:
  std::vector<std::jthread> threads_;
};

/// The system calls, and with `checks` the checksum: the limit.
class Bare {
 public:
  Bare(const MissingMemory& memory, const Image& image, bool checks)
      : memory_{memory}, image_{image}, checks_{checks} {}

  bool install(Gfn first, std::uint32_t nb_pages) noexcept {
    const std::byte* bytes = image_.page(first).data();
    for (std::uint32_t i = 0; checks_ && i < nb_pages; ++i)
      if (crc32c({bytes + i * kPageSize, kPageSize}) != image_.crc(Gfn{first.value + i}))
        return false;
    const std::uint64_t address = memory_.base() + first.value * kPageSize;
    return uffd::copy(memory_.uffd(), address, bytes, nb_pages).nb_pages == nb_pages;
  }

  std::size_t poll_faults(std::span<Gfn> out) noexcept {
    std::array<uffd_msg, kFaultBurst> messages;
    const ssize_t n = uffd::read(memory_.uffd(), std::span{messages}.first(out.size()));
    const std::size_t nb = n > 0 ? static_cast<std::size_t>(n) / sizeof(uffd_msg) : 0;
    for (std::size_t i = 0; i < nb; ++i)
      out[i] = Gfn{(messages[i].arg.pagefault.address - memory_.base()) / kPageSize};
    return nb;
  }

 private:
  const MissingMemory& memory_;
  const Image& image_;
  bool checks_;
};

/// memtap's adapter, and the checksum that its engine takes.
class Fabric {
 public:
  static Result<Fabric> make(const MissingMemory& memory, const Image& image) {
    auto presence = PresenceFile::create(
        fmt::format("/dev/shm/bench-node.{}.presence", getpid()),
        {.image_id = image.image_id(), .nb_pages = image.nb_pages(), .epoch = image.epoch()});
    if (!presence) return std::unexpected(presence.error());
    Attachment attachment;
    attachment.regions = {{memory.base(), image.bytes().size(), 0}};
    attachment.uffd = UniqueFd{fcntl(memory.uffd(), F_DUPFD_CLOEXEC, 0)};
    attachment.peer.pid = getpid();
    return Fabric{image,
                  std::make_unique<UffdGuest>(1, std::move(attachment), std::move(*presence))};
  }

  bool install(Gfn first, std::uint32_t nb_pages) noexcept {
    const std::span bytes{image_->page(first).data(), nb_pages * kPageSize};
    for (std::uint32_t i = 0; i < nb_pages; ++i)
      if (crc32c(bytes.subspan(i * kPageSize).first<kPageSize>()) !=
          image_->crc(Gfn{first.value + i}))
        return false;
    return guest_->install(first, bytes) == Install::kDone;
  }
  std::size_t poll_faults(std::span<Gfn> out) noexcept { return guest_->poll_faults(out); }

 private:
  Fabric(const Image& image, std::unique_ptr<UffdGuest> guest)
      : image_{&image}, guest_{std::move(guest)} {}
  const Image* image_;
  std::unique_ptr<UffdGuest> guest_;
};

/// The runs of one case.
class InstallRuns {
 public:
  InstallRuns(const InstallCase& what, MissingMemory& memory, const Image& image,
              std::uint64_t seed, const std::atomic<bool>& interrupted)
      : what_{what},
        memory_{memory},
        image_{image},
        interrupted_{interrupted},
        order_(image.nb_pages() / what.nb_pages) {
    for (std::size_t i = 0; i < order_.size(); ++i)
      order_[i] = static_cast<std::uint32_t>(i * what.nb_pages);
    std::ranges::shuffle(order_, std::mt19937_64{seed});
  }

  Result<InstallResult> run(unsigned nb_runs) {
    InstallResult out{what_, {}, {}};
    for (unsigned i = 0; i < nb_runs; ++i) {
      say_round(what_.name, i + 1, nb_runs);
      auto fabric = Fabric::make(memory_, image_);
      if (!fabric) return std::unexpected(fabric.error());
      const auto copying = timed(Bare{memory_, image_, false});
      const auto bare = timed(Bare{memory_, image_, true});
      const auto ours = timed(*fabric);
      for (const auto* rate : {&copying, &bare, &ours})
        if (!*rate) return std::unexpected(rate->error());
      out.copying.push_back(*copying);
      out.pairs.push_back({*bare, *ours});
    }
    return out;
  }

 private:
  /// Pages per second.
  template <class Way>
  Result<double> timed(Way&& way) {
    memory_.forget();
    const auto began = std::chrono::steady_clock::now();
    const bool installed = what_.nb_threads == 0 ? install_all(way) : answer_faults(way);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    if (interrupted_.load()) return fail(EINTR, what_.name);
    const std::size_t nb_pages = order_.size() * what_.nb_pages;
    if (!installed ||
        std::memcmp(memory_.page(0), image_.bytes().data(), nb_pages * kPageSize) != 0)
      return fail(EBADMSG, fmt::format("{}: the guest's memory is not the image", what_.name));
    return static_cast<double>(nb_pages) / took.count();
  }

  template <class Way>
  bool install_all(Way& way) {
    return std::ranges::all_of(order_, [&](std::uint32_t first) {
      return !interrupted_.load(std::memory_order_relaxed) &&
             way.install(Gfn{first}, what_.nb_pages);
    });
  }

  /// Also when a signal comes: a vCPU that waits for a page could not be ended.
  template <class Way>
  bool answer_faults(Way& way) {
    const Vcpus vcpus{memory_, order_, what_.nb_threads};
    for (std::size_t nb_left = order_.size(); nb_left > 0;) {
      std::array<Gfn, kFaultBurst> faults;
      const std::size_t nb = way.poll_faults(faults);
      for (const Gfn page : std::span{faults}.first(nb))
        if (!way.install(page, 1)) {
          memory_.give_up();
          return false;
        }
      nb_left -= nb;
    }
    return true;
  }

  const InstallCase& what_;
  MissingMemory& memory_;
  const Image& image_;
  const std::atomic<bool>& interrupted_;
  std::vector<std::uint32_t> order_;
};

}  // namespace

Result<std::vector<InstallResult>> run_install(const InstallOptions& options, const Image& image,
                                               const std::atomic<bool>& interrupted) {
  auto memory = MissingMemory::make(image.nb_pages());
  if (!memory) return std::unexpected(memory.error());
  std::vector<InstallResult> results;
  for (const InstallCase& what : kInstallCases) {
    if (!options.only.empty() && options.only != what.name) continue;
    auto result = InstallRuns{what, *memory, image, options.seed, interrupted}.run(options.runs);
    if (!result) return std::unexpected(result.error());
    results.push_back(std::move(*result));
  }
  return results;
}

}  // namespace snowfabric::bench
