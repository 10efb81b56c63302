// SPDX-License-Identifier: BSD-3-Clause
#include "tests/sim/sim_lab.hpp"

#include <algorithm>
#include <numeric>

namespace snowfabric::sim {

namespace {
constexpr Nanos kPollCost{std::chrono::microseconds{1}};  // a poll loop's turn
}

TestImage::TestImage(std::uint64_t n, double zero_share, std::uint64_t seed)
    : bytes(n * kPageSize), crc(n), zeros((n + 63) / 64), nb_pages{n} {
  Prng prng{seed};
  for (std::uint64_t p = 0; p < n; ++p) {
    // zero pages come in runs, as in a real guest
    const bool zero = p % 16 != 0 && prng.uniform() < zero_share
                          ? true
                          : p % 16 != 0 && ((zeros[(p - 1) / 64] >> ((p - 1) % 64)) & 1) != 0 &&
                                prng.uniform() < zero_share;
    const std::span<std::byte> page = std::span{bytes}.subspan(p * kPageSize, kPageSize);
    if (zero) {
      zeros[p / 64] |= std::uint64_t{1} << (p % 64);
    } else {
      ++nb_data_pages;
      for (std::size_t i = 0; i < kPageSize; i += 8) {
        const std::uint64_t word = prng.next();
        std::memcpy(page.data() + i, &word, sizeof word);
      }
    }
    crc[p] = crc32c(page);
  }
}

ImageView TestImage::view() const {
  return {.image_id = 0x5eed, .epoch = 1, .nb_pages = nb_pages, .crc32c = crc, .zero_words = zeros};
}

bool Host::done() const {
  return std::all_of(guests.begin(), guests.end(),
                     [](const Guest& g) { return g.next == g.order.size(); });
}

Lab::Lab(const TestImage& image, const ServerConfig& server, std::uint64_t seed)
    : image_{image}, server_config_{server}, prng_{seed} {
  start_server(server.incarnation);
}

void Lab::start_server(std::uint32_t incarnation) {
  server_config_.incarnation = incarnation;
  stats_ = std::make_unique<ServerStats>();
  server_ = std::make_unique<ServerEngine>(server_config_, image_.view(), *stats_);
}

void Lab::kill_server() { server_.reset(); }

Host& Lab::add_host(const Link& link, const std::function<void(ClientConfig&)>& tune) {
  auto host = std::make_unique<Host>();
  const auto n = static_cast<std::uint8_t>(hosts.size() + 1);
  host->mac = MacAddr{{0x02, 0, 0, 0, 0, n}};
  host->link = link;
  ClientConfig config{.client_id = 0xc0ffee00ULL + n,
                      .image_id = image_.view().image_id,
                      .epoch = image_.view().epoch,
                      .mac = host->mac,
                      .mtu_bytes = server_config_.mtu_bytes,
                      .seed = prng_.next()};
  if (tune) tune(config);
  host->engine = std::make_unique<ClientEngine>(config, host->stats);
  host->present.resize(image_.nb_pages);
  hosts.push_back(std::move(host));
  return *hosts.back();
}

void Lab::add_guest(Host& host, std::vector<std::uint64_t> order) {
  host.guests.push_back({.order = std::move(order)});
}

void Lab::at(Nanos when, std::function<void()> what) {
  events_.push({when, next_order_++, std::move(what)});
}

bool Lab::all_done() const {
  return std::all_of(hosts.begin(), hosts.end(),
                     [](const auto& h) { return !h->alive || h->done(); });
}

bool Lab::run(Nanos limit) {
  while (now_ < limit && !all_done()) step(limit);
  return all_done();
}

void Lab::run_until(Nanos when) {
  while (now_ < when) step(when);
}

void Lab::step(Nanos limit) {
  if (server_) poll_server();
  for (const auto& host : hosts)
    if (host->alive) poll_host(*host);
  Nanos next = limit;
  if (!events_.empty()) next = std::min(next, events_.top().when);
  if (server_) next = std::min(next, std::max(server_->deadline(now_), server_busy_until_));
  for (const auto& host : hosts)
    if (host->alive) next = std::min(next, host->engine->deadline(now_));
  now_ = std::max(now_ + kPollCost, next);
  while (!events_.empty() && events_.top().when <= now_) {
    const auto run = events_.top().run;
    events_.pop();
    run();
  }
}

// --- the wire --------------------------------------------------------------------------------

void Lab::send(const Bytes& frame) {
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data(), sizeof eth);
  const auto to_host = [&](Host& host) {
    deliver(
        host.link, host_busy_[&host], [this, &host, frame] { receive_at_host(host, frame); },
        frame.size(), frame);
  };
  if (eth.dst == kServerMac || eth.dst == kBroadcast)
    deliver(
        server_link, server_rx_busy_, [this, frame] { receive_at_server(frame); }, frame.size(),
        frame);
  for (const auto& host : hosts)
    if (eth.src != host->mac && (eth.dst == host->mac || eth.dst.is_multicast())) to_host(*host);
}

void Lab::inject(const MacAddr& dst, Bytes frame) {
  std::memcpy(frame.data(), &dst, std::min(sizeof dst, frame.size()));
  frame.resize(std::max(frame.size(), sizeof(wire::EthHdr)));
  send(frame);
}

void Lab::deliver(Link& link, Nanos& busy_until, std::function<void()> receive, std::size_t size,
                  const Bytes& frame) {
  wire::Frame parsed;
  const bool readable =
      wire::parse(std::span{frame}.subspan(sizeof(wire::EthHdr)), parsed) == wire::Drop::kNone;
  if (link.down || prng_.uniform() < link.loss) return;
  if (link.drop && readable && link.drop(parsed)) return;
  const auto on_wire =
      Nanos{static_cast<std::int64_t>(static_cast<double>(size) / link.bytes_per_s * 1e9)};
  const Nanos start = std::max(now_, busy_until);
  const double queued = std::chrono::duration<double>(start - now_).count() * link.bytes_per_s;
  if (queued > static_cast<double>(link.queue_bytes)) return;  // tail drop
  busy_until = start + on_wire;
  const int copies = prng_.uniform() < link.duplicate ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    const double late = prng_.uniform() * static_cast<double>(link.jitter.count());
    at(busy_until + link.delay + Nanos{static_cast<std::int64_t>(late)}, receive);
  }
}

void Lab::receive_at_server(const Bytes& frame) {
  if (!server_) return;
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data(), sizeof eth);
  wire::Frame parsed;
  wire::Drop why = wire::parse(std::span{frame}.subspan(sizeof eth), parsed);
  if (why == wire::Drop::kNone) why = server_->on_frame(parsed, eth.src, now_);
  if (why != wire::Drop::kNone) server_drops.count(why);
}

void Lab::receive_at_host(Host& host, const Bytes& frame) {
  if (!host.alive) return;
  wire::EthHdr eth;
  std::memcpy(&eth, frame.data(), sizeof eth);
  wire::Frame parsed;
  wire::Drop why = wire::parse(std::span{frame}.subspan(sizeof eth), parsed);
  ClientEngine& engine = *host.engine;
  if (why == wire::Drop::kNone) why = engine.on_frame(parsed, eth.src, frame.size(), now_);
  if (why != wire::Drop::kNone) {
    host.drops.count(why);
  } else if (parsed.type == wire::FrameType::kPage) {
    const Gfn page{parsed.page.gfn.host()};
    if (host.present[page.value]) {
      engine.on_duplicate(parsed);
    } else if (const auto arrival = engine.take_page(parsed, now_, why)) {
      install(host, arrival->page, arrival->bytes);
    } else if (why != wire::Drop::kNone) {
      host.drops.count(why);
    }
  } else if (parsed.type == wire::FrameType::kZeros) {
    static const Bytes kZeroPage(kPageSize);
    for (std::size_t i = 0; i < parsed.nb_ranges(); ++i) {
      const PageRange range = parsed.range(i);
      engine.take_range(parsed.type, range, now_);
      for (std::uint64_t p = 0; p < range.nb_pages; ++p)
        if (!host.present[range.first.value + p])
          install(host, Gfn{range.first.value + p}, kZeroPage);
    }
  }
}

void Lab::install(Host& host, Gfn page, std::span<const std::byte> bytes) {
  if (!std::ranges::equal(bytes, image_.page(page))) ++host.wrong_bytes;
  host.present[page.value] = true;
  ++host.installed;
}

// --- the parties -----------------------------------------------------------------------------

void Lab::poll_server() {
  ServerTx tx;
  while (now_ >= server_busy_until_ && server_->next(tx, now_)) {
    Bytes frame(wire::kMaxFrameBytes);
    std::size_t size = server_->write(tx, kServerMac, frame);
    if (tx.type == wire::FrameType::kPage) {
      const std::size_t n = server_->nb_fragments();
      const auto data = image_.page(tx.range.first)
                            .subspan(tx.fragment * wire::fragment_stride(n),
                                     wire::fragment_bytes(tx.fragment, n));
      std::ranges::copy(data, frame.begin() + static_cast<std::ptrdiff_t>(size));
      size += data.size();
      if (tx.dst.is_multicast() && tx.fragment == 0) ++multicasts[tx.range.first.value];
    }
    frame.resize(size);
    wire_bytes += size;
    server_busy_until_ =
        now_ +
        Nanos{static_cast<std::int64_t>(static_cast<double>(size) / server_tx_bytes_per_s * 1e9)};
    send(frame);
  }
}

void Lab::poll_host(Host& host) {
  run_guests(host);
  host.engine->expire(now_);
  Bytes frame(sizeof(wire::ControlBuffer));
  for (;;) {
    const std::size_t size = host.engine->next(frame, now_);
    if (size == 0) return;
    send(Bytes(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size)));
  }
}

void Lab::run_guests(Host& host) {
  ClientEngine& engine = *host.engine;
  if (engine.nb_pages() == 0) return;
  for (Host::Guest& guest : host.guests) {
    while (guest.next < guest.order.size() && host.present[guest.order[guest.next]]) {
      ++guest.next;
      guest.waiting = false;
    }
    if (guest.next == guest.order.size()) {
      if (guest.done_at == kNever) guest.done_at = host.done_at = now_;
    } else if (!guest.waiting) {
      const std::uint64_t page = guest.order[guest.next];
      guest.waiting = engine.want(Gfn{page}, wire::Priority::kDemand, now_);
      for (std::uint64_t p = page + 1; p <= page + host.prefetch && p < image_.nb_pages; ++p)
        if (!host.present[p]) engine.want(Gfn{p}, wire::Priority::kPrefetch, now_);
    }
  }
}

std::vector<std::uint64_t> sequential(std::uint64_t nb_pages) {
  std::vector<std::uint64_t> order(nb_pages);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<std::uint64_t> shuffled(std::uint64_t nb_pages, std::uint64_t seed) {
  auto order = sequential(nb_pages);
  Prng prng{seed};
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[prng.next() % i]);
  return order;
}

}  // namespace snowfabric::sim
