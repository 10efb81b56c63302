// SPDX-License-Identifier: BSD-3-Clause
#include "library/snowfabric.h"

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "library/clock.hpp"
#include "library/dpdk_carrier.hpp"
#include "library/fetching.hpp"
#include "library/serving.hpp"
#include "library/udp_carrier.hpp"
#include "pmd-config/app.hpp"

using namespace snowfabric;

struct sf_server {
  sf_server(PageSource pages, std::unique_ptr<Carrier> carrier, const ServerConfig& config)
      : serving{std::move(pages), std::move(carrier), config} {}
  Serving serving;
  std::atomic<bool> stop{false};
};
static_assert(std::atomic<bool>::is_always_lock_free);  // what signal handlers may touch

struct sf_client {
  sf_client(std::unique_ptr<Carrier> carrier, const ClientConfig& config,
            Fetching::Callbacks callbacks)
      : fetching{std::move(carrier), config, std::move(callbacks)} {}
  Fetching fetching;
};

namespace {

constexpr double kDefaultRate = 1.25e9;
constexpr Nanos kSocketTurn{std::chrono::microseconds{200}};  // of a server, with its system calls
constexpr std::uint64_t kMaxPages = std::numeric_limits<std::uint32_t>::max();
thread_local std::string last_error;

int failed(const Error& error) noexcept {
  try {
    last_error = fmt::format("{}: {}", error.what, std::strerror(error.errnum));
  } catch (...) {
    last_error.clear();  // no memory for it
  }
  return -error.errnum;
}

/// Calls what returns a Result, and lets no exception out but a thread's end by pthread_cancel(3)
/// in a callback.
template <class Function>
int guarded(Function&& function) {
  try {
    if (const auto result = function(); !result) return failed(result.error());
    return 0;
  } catch (const std::bad_alloc&) {
    return failed({ENOMEM, "memory"});
  } catch (const std::exception& error) {
    return failed({EIO, error.what()});
  } catch (const abi::__forced_unwind&) {
    throw;
  } catch (...) {
    return failed({EIO, "an exception of a callback"});
  }
}

UdpOptions udp_options(const sf_carrier& carrier) {
  UdpOptions options;
  if (carrier.interface != nullptr) options.interface = carrier.interface;
  if (carrier.group != nullptr) options.group = carrier.group;
  if (carrier.port != 0) options.port = carrier.port;
  if (carrier.ttl != 0) options.ttl = carrier.ttl;
  options.mtu_bytes = carrier.mtu_bytes;
  return options;
}

DpdkOptions dpdk_options(const sf_carrier& carrier) {
  DpdkOptions options;
  if (carrier.profile != nullptr) options.profile = carrier.profile;
  if (carrier.interface != nullptr) options.device = carrier.interface;
  options.mtu_bytes = carrier.mtu_bytes;
  if (carrier.kind != SF_DPDK_UDP) return options;
  IpOptions& ip = options.ip.emplace();
  if (carrier.address != nullptr) ip.address = carrier.address;
  if (carrier.group != nullptr) ip.group = carrier.group;
  if (carrier.port != 0) ip.port = carrier.port;
  if (carrier.ttl != 0) ip.ttl = carrier.ttl;
  return options;
}

Result<std::unique_ptr<Carrier>> open_carrier(const sf_carrier& carrier, Side side,
                                              std::uint64_t image_id) {
  switch (carrier.kind) {
    case SF_UDP: return UdpCarrier::open(udp_options(carrier), side, image_id);
    case SF_ETHERNET:
    case SF_DPDK_UDP: return DpdkCarrier::open(dpdk_options(carrier), side, image_id);
  }
  return fail(EINVAL, fmt::format("sf_carrier: kind {}", static_cast<int>(carrier.kind)));
}

std::uint32_t epoch_of(std::uint32_t epoch) noexcept { return epoch != 0 ? epoch : 1; }

Result<PageSource> source_of(const sf_server_options& options) {
  if ((options.image != nullptr) == (options.read_page != nullptr))
    return fail(EINVAL, "sf_server_options: image or read_page, one of them");
  const std::uint32_t epoch = epoch_of(options.epoch);
  if (options.image != nullptr)
    return PageSource::of_file(
        options.image, options.image_id != 0 ? std::optional{options.image_id} : std::nullopt,
        epoch);
  const auto read = [read_page = options.read_page, user = options.user](
                        Gfn page, std::span<std::byte, kPageSize> out) {
    return std::abs(std::max(read_page(user, page.value, out.data()), -INT_MAX));
  };
  return PageSource::of_function(read, options.nb_pages, options.image_id, epoch);
}

Result<std::unique_ptr<sf_server>> open_server(const sf_server_options& options) {
  auto pages = source_of(options);
  if (!pages) return std::unexpected(pages.error());
  auto carrier = open_carrier(options.carrier, Side::kServer, pages->view().image_id);
  if (!carrier) return std::unexpected(carrier.error());
  ServerConfig config;
  config.incarnation = static_cast<std::uint32_t>(random_id() | 1U);
  config.flow.max_bytes_per_s =
      options.max_bytes_per_s != 0 ? static_cast<double>(options.max_bytes_per_s) : kDefaultRate;
  if (options.initial_bytes_per_s != 0)
    config.flow.initial_bytes_per_s = static_cast<double>(options.initial_bytes_per_s);
  config.flow.initial_bytes_per_s =
      std::min(config.flow.initial_bytes_per_s, config.flow.max_bytes_per_s);
  if (options.carrier.kind == SF_UDP) config.burst_time = kSocketTurn;
  config.flow.floor_bytes_per_s =
      std::min(config.flow.floor_bytes_per_s, config.flow.max_bytes_per_s);
  return std::make_unique<sf_server>(std::move(*pages), std::move(*carrier), config);
}

Result<std::unique_ptr<sf_client>> open_client(const sf_client_options& options) {
  if (options.on_page == nullptr) return fail(EINVAL, "sf_client_options: on_page is needed");
  if (options.image_id == 0) return fail(EINVAL, "sf_client_options: image_id is needed");
  auto carrier = open_carrier(options.carrier, Side::kClient, options.image_id);
  if (!carrier) return std::unexpected(carrier.error());
  ClientConfig config;
  config.client_id = random_id();
  config.seed = config.client_id;
  config.image_id = options.image_id;
  config.epoch = epoch_of(options.epoch);
  if (options.max_pages != 0) config.max_pages = std::min(options.max_pages, kMaxPages);
  Fetching::Callbacks callbacks;
  callbacks.on_page = [call = options.on_page, user = options.user](
                          Gfn page, std::span<const std::byte, kPageSize> bytes) {
    call(user, page.value, bytes.data());
  };
  if (options.on_unavailable != nullptr)
    callbacks.on_unavailable = [call = options.on_unavailable, user = options.user](Gfn page) {
      call(user, page.value);
    };
  return std::make_unique<sf_client>(std::move(*carrier), config, std::move(callbacks));
}

Nanos time_of(int timeout_ms) noexcept {
  return timeout_ms < 0 ? Fetching::kForever : Nanos{std::chrono::milliseconds{timeout_ms}};
}

std::uint64_t sum(const DropCounters& drops) noexcept {
  std::uint64_t total = 0;
  for (const Counter& counter : drops.by_reason) total += counter.read();
  return total;
}

}  // namespace

const char* sf_error() { return last_error.c_str(); }
const char* sf_version() { return SNOWFABRIC_VERSION; }

// --- server ----------------------------------------------------------------------------------

int sf_server_open(const sf_server_options* options, sf_server** out) {
  return guarded([&]() -> Result<void> {
    auto server = open_server(*options);
    if (!server) return std::unexpected(server.error());
    *out = server->release();
    return {};
  });
}

std::uint64_t sf_server_image_id(const sf_server* server) {
  return server->serving.image().image_id;
}
std::uint64_t sf_server_nb_pages(const sf_server* server) {
  return server->serving.image().nb_pages;
}

int sf_server_run(sf_server* server) {
  return guarded([&] { return server->serving.run(server->stop); });
}

void sf_server_stop(sf_server* server) { server->stop = true; }

void sf_server_get_stats(const sf_server* server, sf_server_stats* out) {
  const ServerStats& stats = server->serving.stats();
  const Carrier& carrier = server->serving.carrier();
  *out = {.nb_clients = stats.clients.read(),
          .tx_pages = stats.tx_pages_multicast.read() + stats.tx_pages_unicast.read(),
          .tx_bytes = carrier.tx_bytes(),
          .distinct_pages = stats.pages_sent_once.read(),
          .rx_dropped = sum(server->serving.drops()),
          .tx_failed = carrier.nb_failed(),
          .reserved = {}};
}

void sf_server_close(sf_server* server) { delete server; }

// --- client ----------------------------------------------------------------------------------

int sf_client_open(const sf_client_options* options, sf_client** out) {
  return guarded([&]() -> Result<void> {
    auto client = open_client(*options);
    if (!client) return std::unexpected(client.error());
    *out = client->release();
    return {};
  });
}

int sf_client_join(sf_client* client, int timeout_ms) {
  return guarded([&] { return client->fetching.join(time_of(timeout_ms)); });
}

std::uint64_t sf_client_nb_pages(const sf_client* client) { return client->fetching.nb_pages(); }

int sf_client_request(sf_client* client, std::uint64_t first, std::uint64_t nb_pages,
                      sf_priority priority) {
  return guarded([&]() -> Result<void> {
    if (priority != SF_DEMAND && priority != SF_PREFETCH)
      return fail(EINVAL, fmt::format("request: priority {}", static_cast<int>(priority)));
    return client->fetching.request(
        Gfn{first}, nb_pages,
        priority == SF_DEMAND ? wire::Priority::kDemand : wire::Priority::kPrefetch);
  });
}

std::uint64_t sf_client_nb_missing(const sf_client* client) {
  return client->fetching.nb_missing();
}

int sf_client_run(sf_client* client, int timeout_ms) {
  return guarded([&] { return client->fetching.run(time_of(timeout_ms)); });
}

int sf_client_fd(const sf_client* client) { return client->fetching.carrier().poll_fd(); }

int sf_client_timeout_ms(const sf_client* client) {
  const Nanos now = monotonic_now();
  const Nanos left = client->fetching.deadline(now) - now;
  constexpr Nanos kLongest = std::chrono::seconds{1};
  return static_cast<int>(
      std::chrono::ceil<std::chrono::milliseconds>(std::clamp(left, Nanos{0}, kLongest)).count());
}

void sf_client_stop(sf_client* client) { client->fetching.stop(); }

void sf_client_get_stats(const sf_client* client, sf_client_stats* out) {
  const ClientStats& stats = client->fetching.stats();
  *out = {.rx_pages = stats.rx_pages.read(),
          .rx_zero_pages = stats.rx_zero_pages.read(),
          .rx_duplicates = stats.rx_duplicates.read(),
          .rx_lost = stats.rx_lost.read(),
          .retries = stats.retries.read(),
          .rx_dropped = sum(client->fetching.drops()),
          .reserved = {}};
}

void sf_client_close(sf_client* client) {
  if (client != nullptr) client->fetching.leave();
  delete client;
}
