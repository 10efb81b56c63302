// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_fault.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include <fmt/format.h>

#include "fabric/wire.hpp"
#include "memtap-dpdk/uffd_ioctl.hpp"
#include "tools/bench_missing.hpp"

namespace snowfabric::bench {
namespace {

constexpr double kPatienceUs = 200'000;  // then it is asked again
constexpr std::uint64_t kMostLost = 100;

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point began) {
  return std::chrono::duration<double, std::micro>(Clock::now() - began).count();
}

wire::Identity identity_of(const Image& image) {
  return {image.image_id(), image.epoch(), 1, image.space()};
}

/// The requests of round_trips().
class Requester {
 public:
  Requester(const Image& image, const Port& port, const MacAddr& responder)
      : image_{image}, port_{port}, queue_{port.queue()}, responder_{responder} {}

  /// @return false: there is no mbuf, or no room in the ring
  [[nodiscard]] bool ask(Gfn page) noexcept {
    rte_mbuf* request = rte_pktmbuf_alloc(port_.pool());
    if (request == nullptr) return false;
    const wire::WantEntry want{.first = page.value,
                               .nb_pages = std::uint16_t{1},
                               .priority = 0,
                               .flags = 0,
                               .fragments = 0,
                               .reserved = {}};
    const std::size_t size = wire::write_request(
        {rte_pktmbuf_mtod(request, std::byte*), rte_pktmbuf_tailroom(request)}, identity_of(image_),
        responder_, port_.mac(), {.client_id = 1U, .report = {}}, {&want, 1});
    request->data_len = static_cast<std::uint16_t>(size);
    request->pkt_len = request->data_len;
    if (queue_.tx_burst({&request, 1}) == 1) return true;
    rte_pktmbuf_free(request);
    return false;
  }

  /// Takes what has come. @return whether the page was among it
  [[nodiscard]] bool take(Gfn page) noexcept {
    std::array<rte_mbuf*, kBurst> burst;
    const std::uint16_t nb_rx = queue_.rx_burst(burst);
    bool found = false;
    for (const rte_mbuf* frame : std::span{burst}.first(nb_rx)) {
      wire::Frame parsed;
      if (wire::parse(gather(*frame, gather_), parsed) != wire::Drop::kNone ||
          parsed.type != wire::FrameType::kPage || parsed.page.gfn.host() != page.value)
        continue;
      found = true;
      std::ranges::copy(parsed.tail, page_.begin());
    }
    rte_pktmbuf_free_bulk(burst.data(), nb_rx);
    return found;
  }
  [[nodiscard]] bool is_right(Gfn page) const noexcept {
    return std::ranges::equal(page_, image_.page(page));
  }

 private:
  const Image& image_;
  const Port& port_;
  EthPort queue_;
  MacAddr responder_;
  GatherBuffer gather_;
  std::array<std::byte, kPageSize> page_{};
};

}  // namespace

// --- a request there, a page back ----------------------------------------------------------------

Responder::Responder(const Image& image, const Port& port)
    : image_{image}, port_{port}, queue_{port.queue()} {}

void Responder::run(const std::atomic<bool>& stop, const IdleConfig& idle_config) noexcept {
  const std::array wait_fds{port_.wait_fd()};
  Idle idle{idle_config};
  while (!stop.load(std::memory_order_relaxed)) {
    if (turn() != 0)
      idle.hit();
    else
      idle.miss(wait_fds);
  }
}

unsigned Responder::turn() noexcept {
  std::array<rte_mbuf*, kBurst> burst;
  const std::uint16_t nb_rx = queue_.rx_burst(burst);
  for (const rte_mbuf* frame : std::span{burst}.first(nb_rx)) answer(*frame);
  rte_pktmbuf_free_bulk(burst.data(), nb_rx);
  return nb_rx + tail_.flush(queue_);
}

void Responder::answer(const rte_mbuf& request) noexcept {
  wire::Frame parsed;
  if (wire::parse(gather(request, gather_), parsed) != wire::Drop::kNone ||
      parsed.type != wire::FrameType::kRequest || parsed.nb_wants() == 0)
    return;
  const Gfn page{parsed.want(0).first.host()};
  rte_mbuf* frame = rte_pktmbuf_alloc(port_.pool());
  if (page.value >= image_.nb_pages() || frame == nullptr) {
    rte_pktmbuf_free(frame);
    return;
  }
  auto* out = rte_pktmbuf_mtod(frame, std::byte*);
  const std::size_t size = wire::write_page_header(
      {out, wire::kPageHeaderBytes}, identity_of(image_), group_address(image_.image_id()),
      port_.mac(), page, image_.crc(page), 0, 1, wire::kFlagSequenced, 0);
  std::memcpy(out + size, image_.page(page).data(), kPageSize);
  frame->data_len = static_cast<std::uint16_t>(size + kPageSize);
  frame->pkt_len = frame->data_len;
  if (!tail_.push(frame)) rte_pktmbuf_free(frame);  // who asked will ask again
}

Result<Latencies> round_trips(const Image& image, const Port& port, const MacAddr& responder,
                              std::span<const std::uint32_t> pages, const IdleConfig& idle_config,
                              const std::atomic<bool>& stop) {
  Requester requester{image, port, responder};
  const std::array wait_fds{port.wait_fd()};
  Latencies out;
  for (std::size_t i = 0; i < pages.size();) {
    const Gfn page{pages[i]};
    Idle idle{idle_config};
    const auto began = Clock::now();
    bool came = requester.ask(page) && requester.take(page);
    while (!came && us_since(began) < kPatienceUs && !stop.load()) {
      idle.miss(wait_fds);
      came = requester.take(page);
    }
    const double took = us_since(began);
    if (stop.load()) return fail(EINTR, "round trips");
    if (!came) {
      if (++out.nb_lost == kMostLost)
        return fail(ETIMEDOUT,
                    fmt::format("{} requests in a row or more had no answer", kMostLost));
      continue;
    }
    if (!requester.is_right(page)) return fail(EBADMSG, fmt::format("page {}", page.value));
    out.us.push_back(took);
    ++i;
  }
  return out;
}

// --- a page put in place -------------------------------------------------------------------------

namespace {

/// Touches one page after the other, in a thread that takes no signals: one that does while it
/// waits faults on its page once more.
class TimedVcpu {
 public:
  TimedVcpu(const MissingMemory& memory, std::span<const std::uint32_t> pages,
            std::vector<double>& us) {
    us.reserve(pages.size());
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::jthread{[&memory, pages, &us] {
      for (const std::uint32_t page : pages) {
        const auto began = Clock::now();
        (void)*static_cast<const volatile std::byte*>(memory.page(page));
        us.push_back(us_since(began));
      }
    }};
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

 private:
  std::jthread thread_;
};

/// @return false: one could not be put in place
bool answer_faults(const MissingMemory& memory, const Image& image, std::size_t nb_faults,
                   const IdleConfig& idle_config) {
  const std::array wait_fds{memory.uffd()};
  Idle idle{idle_config};
  while (nb_faults > 0) {
    uffd_msg message;
    if (uffd::read(memory.uffd(), {&message, 1}) != sizeof message) {
      idle.miss(wait_fds);
      continue;
    }
    idle.hit();
    const Gfn page{(message.arg.pagefault.address - memory.base()) / kPageSize};
    const std::uint64_t address = memory.base() + page.value * kPageSize;
    if (uffd::copy(memory.uffd(), address, image.page(page).data(), 1).nb_pages != 1) return false;
    --nb_faults;
  }
  return true;
}

}  // namespace

Result<Latencies> local_faults(const Image& image, std::span<const std::uint32_t> pages,
                               const IdleConfig& idle) {
  auto memory = MissingMemory::make(image.nb_pages());
  if (!memory) return std::unexpected(memory.error());
  Latencies out;
  {
    const TimedVcpu vcpu{*memory, pages, out.us};
    if (!answer_faults(*memory, image, pages.size(), idle)) memory->give_up();
  }
  for (const std::uint32_t page : pages)
    if (std::memcmp(memory->page(page), image.page(Gfn{page}).data(), kPageSize) != 0)
      return fail(EBADMSG, fmt::format("page {} was put in place wrong", page));
  return out;
}

}  // namespace snowfabric::bench
