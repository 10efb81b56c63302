// SPDX-License-Identifier: BSD-3-Clause
//
// bench-node: what tools/fabric-bench runs, by itself or on each of its hosts.
#include <rte_cycles.h>
#include <rte_version.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>

#include "fabric/base/parse_number.hpp"
#include "fabric/base/prng.hpp"
#include "pmd-config/app.hpp"
#include "tools/bench_bare.hpp"
#include "tools/bench_install.hpp"
#include "tools/bench_report.hpp"
#include "tools/bench_ring.hpp"
#include "tools/bench_serve.hpp"

namespace snowfabric::bench {
namespace {

/// 256 MiB: far more than the caches hold, so that pages come from memory as in real use, and a run
/// is long against its start and end; small enough that eight receivers fit into one machine.
constexpr std::uint64_t kPages = 65536;
constexpr const char* kNoHugeHelp = "without hugepages: slower, both sides";
constexpr Nanos kSilence = std::chrono::milliseconds{500};

struct Options : AppOptions {
  RingOptions ring;
  ServeOptions serve;
  InstallOptions install;
  std::uint64_t nb_pages = kPages;
  std::string mode = "list", json_path, image_path, out_path, server_mac, image_id;
  bool zero_copy = false, gate = false;
  double pages_per_s = 0, timeout_s = 120;
};

// --- what all have in common -----------------------------------------------------------------

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

// --- subcommands -----------------------------------------------------------------------------

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

// --- command line ----------------------------------------------------------------------------

using Action = Result<void> (*)(const Options&);

/// What the scenarios of one process share.
void add_runs(CLI::App& app, Options& options, unsigned& runs, std::uint64_t& nb_pages,
              int least_pages) {
  app.add_option("--runs", runs, "pairs of runs, bare and fabric by turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--pages", nb_pages, "pages of the image")
      ->check(CLI::Range(least_pages, 4 << 20))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the image")->capture_default_str();
  app.add_option("--json", options.json_path, "write the result there");
}

void add_only(CLI::App& app, std::string& only, std::set<std::string> names) {
  app.add_option("--only", only, "one of the cases alone")->check(CLI::IsMember(std::move(names)));
}

void add_install(CLI::App& app, Options& options) {
  add_runs(app, options, options.install.runs, options.install.nb_pages, 1024);
  std::set<std::string> names;
  for (const InstallCase& what : kInstallCases) names.insert(what.name);
  add_only(app, options.install.only, std::move(names));
}

void add_serve(CLI::App& app, Options& options) {
  add_runs(app, options, options.serve.runs, options.serve.nb_pages, 16384);
  app.add_flag("--no-huge", options.serve.bed.no_huge, kNoHugeHelp);
  app.add_option("--seconds", options.serve.seconds, "of a run")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  add_only(app, options.serve.only, {kServeCases.begin(), kServeCases.end()});
  app.add_option("--range", options.serve.range_pages,
                 "pages of a want, where ranges are asked for")
      ->check(CLI::IsMember({2, 4, 8, 16, 32, 64, 128, 256}))
      ->capture_default_str();
}

void add_mode(CLI::App& app, Options& options) {
  app.add_option("--mode", options.mode,
                 "list: the client asks for all as a prefetch list; faults: its guest faults them; "
                 "push: the server sends unasked")
      ->check(CLI::IsMember({"list", "faults", "push"}))
      ->capture_default_str();
}

void add_ring(CLI::App& app, Options& options) {
  add_mode(app, options);
  add_runs(app, options, options.ring.runs, options.nb_pages, 1024);
  app.add_flag("--no-huge", options.ring.bed.no_huge, kNoHugeHelp);
  app.add_option("--mtu", options.ring.bed.mtu,
                 "of the ports: 4140 or more is one frame a page, sealed 4188")
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--tx", [&](const std::string& tx) { options.zero_copy = tx == "zerocopy"; },
         "how pages leave: copy or zerocopy (copy)")
      ->check(CLI::IsMember({"copy", "zerocopy"}));
  app.add_option("--max-rate-gbps", options.ring.max_rate_gbps,
                 "flow control's rate, from the start; default: the profile's highest");
  app.add_flag("--sealed", options.ring.sealed,
               "the fabric seals its frames, the bare loop does not");
  app.add_flag("--hash-tree", options.ring.hash_tree,
               "the fabric's client holds each page to a hash tree, the bare loop does not");
}

void add_gate(CLI::App& app, Options& options) {
  app.add_flag("--gate", options.gate, "print READY, begin after a line on standard input");
}

void add_peer(CLI::App& app, Options& options) {
  add_app_options(app, options);
  app.add_option("--image", options.image_path, "the image file")->required();
  add_gate(app, options);
}

void add_client(CLI::App& app, Options& options) {
  add_mode(app, options);
  app.add_option("--server", options.server_mac, "memserver's MAC address");
  app.add_option("--timeout", options.timeout_s, "seconds")->capture_default_str();
}

void add_receive_file(CLI::App& app, Options& options) {
  add_app_options(app, options);
  add_gate(app, options);
  add_client(app, options);
  app.add_option("--image-id", options.image_id, "hexadecimal")->required();
  app.add_option("--pages", options.nb_pages, "pages of the image")->required();
  app.add_option("--out", options.out_path, "a new file to receive into")->required();
}

void add_image(CLI::App& app, Options& options) {
  app.add_option("FILE", options.image_path)->required();
  app.add_option("--pages", options.nb_pages)->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
}

void add_send(CLI::App& app, Options& options) {
  add_peer(app, options);
  app.add_option("--pages-per-s", options.pages_per_s, "pace; 0: as fast as the port takes");
}

void add_peer_client(CLI::App& app, Options& options) {
  add_peer(app, options);
  add_client(app, options);
}

struct Subcommand {
  const char *name, *help;
  void (*add_options)(CLI::App&, Options&);
  Action action;
};
constexpr std::array kSubcommands{
    Subcommand{"ring", "both ends in this process, over DPDK rings", add_ring, ring},
    Subcommand{"serve", "one server lcore alone, over DPDK rings", add_serve, serve},
    Subcommand{"install", "memtap's way into a guest alone, by userfaultfd", add_install, install},
    Subcommand{"image", "write an image of random pages", add_image, make_image},
    Subcommand{"send", "bare: send every page once", add_send, send},
    Subcommand{"receive", "bare: copy and check what comes", add_peer, receive},
    Subcommand{"client", "fetch an image from a memserver", add_peer_client, client},
    Subcommand{"receive-file", "fetch an image from a memserver into a file", add_receive_file,
               receive_file}};

int bench(int argc, char** argv) {
  CLI::App cli{"Measures the fabric against a bare loop over the same device.", "bench-node"};
  Options options;
  cli.require_subcommand(1);
  cli.set_version_flag("--version",
                       fmt::format("snowfabric {}, {}", SNOWFABRIC_VERSION, rte_version()));
  for (const Subcommand& each : kSubcommands)
    each.add_options(*cli.add_subcommand(each.name, each.help), options);
  if (const auto status = parse_command_line(cli, argc, argv, options)) return *status;
  Result<void> result = complete_mode(options);
  for (const Subcommand& each : kSubcommands)
    if (result && cli.got_subcommand(each.name)) result = each.action(options);
  if (!result)
    fmt::print(stderr, "bench-node: {}: {}\n", result.error().what,
               std::strerror(result.error().errnum));
  return result ? 0 : 1;
}

}  // namespace
}  // namespace snowfabric::bench

int main(int argc, char** argv) { return snowfabric::bench::bench(argc, argv); }
