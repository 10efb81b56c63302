// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_actions.hpp"

#include <rte_cycles.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>

#include "fabric/base/parse_number.hpp"
#include "fabric/base/prng.hpp"
#include "tools/bench_bare.hpp"
#include "tools/bench_fault.hpp"
#include "tools/bench_report.hpp"

namespace snowfabric::bench {
namespace {

constexpr Nanos kSilence = std::chrono::milliseconds{500};

/// Pages of random bytes: none is zero, none is another's twin.
Result<void> write_image(int fd, std::uint64_t nb_pages, std::uint64_t seed) {
  Prng random{seed};
  std::array<std::uint64_t, 64 * kPageSize / 8> chunk;
  for (std::uint64_t left = nb_pages * kPageSize; left > 0;) {
    for (std::uint64_t& word : chunk) word = random.next();
    const ssize_t done = write(fd, chunk.data(), std::min<std::uint64_t>(left, sizeof chunk));
    if (done <= 0) return fail(errno, "write the image");
    left -= static_cast<std::uint64_t>(done);
  }
  return {};
}

/// A random image that lives in memory and has no name.
Result<Image> anonymous_image(std::uint64_t nb_pages, std::uint64_t seed, bool hash_pages) {
  const int fd = memfd_create("bench-node", MFD_CLOEXEC);
  if (fd < 0) return fail(errno, "memfd_create");
  auto written = write_image(fd, nb_pages, seed);
  auto image = written
                   ? Image::open(fmt::format("/proc/self/fd/{}", fd), {.hash_pages = hash_pages})
                   : Result<Image>{std::unexpected(written.error())};
  close(fd);  // the mapping stays
  return image;
}

/// With --gate: says READY, waits for a line, so that several processes begin together.
void pass_gate(const Options& options) {
  if (!options.gate) return;
  fmt::print("READY\n");
  std::fflush(stdout);
  for (int c = std::getchar(); c != '\n' && c != EOF; c = std::getchar()) {
  }
}

double seconds_between(std::uint64_t from, std::uint64_t to) {
  return static_cast<double>(to - from) / static_cast<double>(rte_get_tsc_hz());
}

void print_json(const nlohmann::ordered_json& json) { fmt::print("{}\n", json.dump()); }

/// What both receiving ends hold: the image to compare with, room for its pages, a port.
struct Receiving {
  Image image;
  Arena arena;
  Datapath datapath;
};

Result<Receiving> open_receiving(const Options& options) {
  auto image = Image::open(options.image_path);
  if (!image) return std::unexpected(image.error());
  auto arena = Arena::make(image->nb_pages());
  if (!arena) return std::unexpected(arena.error());
  auto datapath =
      start_datapath(options, "bench-node", "client", {group_address(image->image_id())});
  if (!datapath) return std::unexpected(datapath.error());
  return Receiving{std::move(*image), std::move(*arena), std::move(*datapath)};
}

/// Fetches an image as memtap does. @return what there is to say of it
nlohmann::ordered_json fetched(const Options& options, std::uint64_t image_id, std::uint32_t epoch,
                               Arena& arena, const Datapath& datapath) {
  const Port& port = datapath.port;
  FetchConfig config{.mode = options.ring.mode, .timeout_s = options.timeout_s};
  config.engine.client_id = random_id();
  config.engine.image_id = image_id;
  config.engine.epoch = epoch;
  config.engine.mac = port.mac();
  config.engine.mtu_bytes = static_cast<std::uint16_t>(port.mtu_bytes());
  config.engine.seed = config.engine.client_id;
  if (!options.server_mac.empty()) config.engine.server = parse_mac(options.server_mac);
  const std::atomic<bool>& stop = stop_on_signals();
  pass_gate(options);
  const Fetched all = fetch(config, port, arena, datapath.profile.idle, stop);
  nlohmann::ordered_json json{
      {"pages", all.nb_pages}, {"seconds", all.seconds}, {"complete", all.complete}};
  for (const auto& [name, value] : all.counters) json["counters"][name] = value;
  return json;
}

/// The first pages of a random order.
std::vector<std::uint32_t> random_pages(const Image& image, const Options& options) {
  std::vector<std::uint32_t> pages(image.nb_pages());
  std::iota(pages.begin(), pages.end(), 0U);
  std::ranges::shuffle(pages, std::mt19937_64{options.seed});
  pages.resize(std::min<std::uint64_t>(pages.size(), options.nb_pages));
  return pages;
}

Result<void> print_latencies(const Result<Latencies>& found) {
  if (!found) return std::unexpected(found.error());
  print_json({{"us", found->us}, {"lost", found->nb_lost}});
  return {};
}

}  // namespace

Result<void> complete_mode(Options& options) {
  const auto mode = parse_mode(options.mode);
  if (!mode) return fail(EINVAL, fmt::format("--mode {}: list, faults or push", options.mode));
  options.ring.mode = *mode;
  options.ring.tx = options.zero_copy ? TxMode::kZeroCopy : TxMode::kCopy;
  options.ring.seed = options.seed;
  options.serve.seed = options.install.seed = options.seed;
  options.ring.bed.eal_args = options.serve.bed.eal_args = options.eal_args;
  return {};
}

Result<void> ring(const Options& options) {
  const std::size_t nb_fragments = wire::fragments_for_mtu(options.ring.bed.mtu);
  auto image = anonymous_image(options.nb_pages, options.seed, options.ring.hash_tree);
  if (!image) return std::unexpected(image.error());
  const auto result = run_ring(options.ring, std::move(*image), stop_on_signals());
  if (!result) return std::unexpected(result.error());
  fmt::print("{}", ring_table(options.ring, options.nb_pages, nb_fragments, *result));
  if (options.json_path.empty()) return {};
  return write_file(options.json_path,
                    ring_json(options.ring, options.nb_pages, nb_fragments, *result));
}

Result<void> serve(const Options& options) {
  auto image = anonymous_image(options.serve.nb_pages, options.seed, false);
  if (!image) return std::unexpected(image.error());
  const auto results = run_serve(options.serve, std::move(*image), stop_on_signals());
  if (!results) return std::unexpected(results.error());
  fmt::print("{}", serve_table(options.serve, *results));
  if (options.json_path.empty()) return {};
  return write_file(options.json_path, serve_json(options.serve, *results));
}

Result<void> install(const Options& options) {
  auto image = anonymous_image(options.install.nb_pages, options.seed, false);
  if (!image) return std::unexpected(image.error());
  const auto results = run_install(options.install, *image, stop_on_signals());
  if (!results) return std::unexpected(results.error());
  fmt::print("{}", install_table(options.install, *results));
  if (options.json_path.empty()) return {};
  return write_file(options.json_path, install_json(options.install, *results));
}

Result<void> make_image(const Options& options) {
  std::FILE* file = std::fopen(options.image_path.c_str(), "w");
  if (file == nullptr) return fail(errno, fmt::format("open {}", options.image_path));
  auto written = write_image(fileno(file), options.nb_pages, options.seed);
  std::fclose(file);
  return written;
}

Result<void> send(const Options& options) {
  auto image = Image::open(options.image_path);
  if (!image) return std::unexpected(image.error());
  auto datapath = start_datapath(options, "bench-node", "server", {});
  if (!datapath) return std::unexpected(datapath.error());
  const std::atomic<bool>& stop = stop_on_signals();
  BareSender sender{*image, datapath->port, datapath->port.tx_mode(), options.pages_per_s};
  pass_gate(options);
  sender.run(stop, datapath->profile.idle);
  print_json({{"pages", sender.nb_pages()}, {"seconds", sender.seconds()}});
  return {};
}

Result<void> receive(const Options& options) {
  auto end = open_receiving(options);
  if (!end) return std::unexpected(end.error());
  const Port& port = end->datapath.port;
  const std::atomic<bool>& stop = stop_on_signals();
  BareReceiver receiver{port, end->arena, port.nb_fragments()};
  pass_gate(options);
  receiver.run(stop, end->datapath.profile.idle, kSilence);
  print_json({{"pages", receiver.nb_pages()},
              {"seconds", seconds_between(receiver.first_at(), receiver.last_at())},
              {"bad_crc", receiver.nb_bad()},
              {"foreign", receiver.nb_foreign()},
              {"kernel_drops", port.kernel_drops().value_or(0)}});
  return {};
}

Result<void> socket_send(const Options& options) {
  const auto image = Image::open(options.image_path);
  if (!image) return std::unexpected(image.error());
  auto sender = SocketSender::open(options.sockets, *image);
  if (!sender) return std::unexpected(sender.error());
  const std::atomic<bool>& stop = stop_on_signals();
  pass_gate(options);
  if (auto ok = sender->run(stop); !ok) return ok;
  print_json({{"pages", sender->nb_pages()},
              {"frames", sender->nb_frames()},
              {"seconds", sender->seconds()}});
  return {};
}

Result<void> socket_receive(const Options& options) {
  auto arena = options.out_path.empty() ? Arena::make(options.nb_pages)
                                        : Arena::in_file(options.out_path, options.nb_pages);
  if (!arena) return std::unexpected(arena.error());
  // A virtual machine may have its page tables shadowed: then the first touch costs, too.
  if (options.out_path.empty()) arena->clear();
  auto receiver = SocketReceiver::open(options.sockets, *arena);
  if (!receiver) return std::unexpected(receiver.error());
  const std::atomic<bool>& stop = stop_on_signals();
  pass_gate(options);
  if (auto ok = receiver->run(stop, kSilence); !ok) return ok;
  print_json({{"pages", receiver->nb_pages()},
              {"frames", receiver->nb_frames()},
              {"lost", receiver->nb_lost()},
              {"seconds", receiver->seconds()},
              {"bad_crc", receiver->nb_bad()},
              {"foreign", receiver->nb_foreign()}});
  return {};
}

Result<void> client(const Options& options) {
  auto end = open_receiving(options);
  if (!end) return std::unexpected(end.error());
  auto json =
      fetched(options, end->image.image_id(), end->image.epoch(), end->arena, end->datapath);
  json["verified"] = json["complete"].get<bool>() && end->arena.equals(end->image);
  print_json(json);
  return {};
}

/// Without the image: as much as a host knows.
Result<void> receive_file(const Options& options) {
  const auto image_id = parse_number(options.image_id, 16);
  if (!image_id)
    return fail(EINVAL, fmt::format("--image-id {}: not hexadecimal", options.image_id));
  auto arena = Arena::in_file(options.out_path, options.nb_pages);
  if (!arena) return std::unexpected(arena.error());
  auto datapath = start_datapath(options, "bench-node", "client", {group_address(*image_id)});
  if (!datapath) return std::unexpected(datapath.error());
  const auto json = fetched(options, *image_id, 1, *arena, *datapath);
  print_json(json);
  if (arena->error() != 0) return fail(arena->error(), fmt::format("write {}", options.out_path));
  if (!json["complete"].get<bool>()) return fail(ETIMEDOUT, "the image did not come whole");
  return {};
}

Result<void> respond(const Options& options) {
  auto image = Image::open(options.image_path);
  if (!image) return std::unexpected(image.error());
  auto datapath = start_datapath(options, "bench-node", "server", {});
  if (!datapath) return std::unexpected(datapath.error());
  const std::atomic<bool>& stop = stop_on_signals();
  Responder responder{*image, datapath->port};
  print_json({{"mac", to_string(datapath->port.mac())}});
  std::fflush(stdout);
  responder.run(stop, datapath->profile.idle);
  return {};
}

Result<void> trips(const Options& options) {
  auto end = open_receiving(options);
  if (!end) return std::unexpected(end.error());
  const auto responder = parse_mac(options.server_mac);
  if (!responder) return fail(EINVAL, fmt::format("--server {}: no MAC", options.server_mac));
  const std::atomic<bool>& stop = stop_on_signals();
  return print_latencies(round_trips(end->image, end->datapath.port, *responder,
                                     random_pages(end->image, options), end->datapath.profile.idle,
                                     stop));
}

Result<void> faults(const Options& options) {
  auto image = Image::open(options.image_path);
  if (!image) return std::unexpected(image.error());
  auto profile = load_profile(options.profile);
  if (!profile) return std::unexpected(profile.error());
  if (const auto idle = parse_idle(options.idle)) profile->idle.strategy = *idle;
  return print_latencies(local_faults(*image, random_pages(*image, options), profile->idle));
}

Result<void> load_server(const Options& options) {
  auto datapath = start_datapath(options, "bench-node", "server", {});
  if (!datapath) return std::unexpected(datapath.error());
  return serve_load(datapath->port, datapath->profile.idle, options.seed, stop_on_signals());
}

Result<void> load_members(const Options& options) {
  auto datapath = start_datapath(options, "bench-node", "client", {});
  if (!datapath) return std::unexpected(datapath.error());
  return run_load(options.load, datapath->port, datapath->profile.idle, options.seed,
                  stop_on_signals());
}

}  // namespace snowfabric::bench
