// SPDX-License-Identifier: BSD-3-Clause
//
// bench-node: what tools/fabric-bench runs, by itself or on each of its hosts.
#include <rte_version.h>

#include <array>
#include <cstring>
#include <set>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "tools/bench_actions.hpp"

namespace snowfabric::bench {
namespace {

constexpr const char* kNoHugeHelp = "without hugepages: slower, both sides";

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

void add_sockets(CLI::App& app, Options& options) {
  app.add_option("--interface", options.sockets.interface, "kernel interface")->required();
  add_gate(app, options);
}

void add_socket_send(CLI::App& app, Options& options) {
  add_sockets(app, options);
  app.add_option("--image", options.image_path, "the image file")->required();
  app.add_option("--mtu", options.sockets.mtu_bytes,
                 "of IP packets: 8280 or more is two pages each")
      ->check(CLI::Range(576, 65535))
      ->capture_default_str();
  app.add_option("--pages-per-s", options.sockets.pages_per_s,
                 "pace; 0: as fast as the socket takes")
      ->check(CLI::Range(0.0, 1e9));
}

void add_socket_receive(CLI::App& app, Options& options) {
  add_sockets(app, options);
  app.add_option("--pages", options.nb_pages, "pages of the image")
      ->check(CLI::Range(1, 4 << 20))
      ->capture_default_str();
  app.add_option("--out", options.out_path, "a new file to receive into; default: memory");
}

void add_peer_client(CLI::App& app, Options& options) {
  add_peer(app, options);
  add_client(app, options);
}

void add_faults(CLI::App& app, Options& options) {
  add_peer(app, options);
  app.add_option("--pages", options.nb_pages, "so many pages, in random order")
      ->capture_default_str();
}

void add_trips(CLI::App& app, Options& options) {
  add_faults(app, options);
  app.add_option("--server", options.server_mac, "the responder's MAC address")->required();
}

void add_load_server(CLI::App& app, Options& options) { add_app_options(app, options); }

void add_load_delays(CLI::App& app, LoadOptions& load) {
  app.add_option("--trace", load.trace_paths,
                 "a file that memtap-dpdk --record wrote, replayed by members in turns; default: "
                 "traces from the seed");
  app.add_option("--touched", load.nb_touched,
                 "pages of a trace from the seed, rounded down to a multiple of 16")
      ->check(CLI::Range(16U, kMaxLoadPages))
      ->capture_default_str();
  app.add_option("--pages", load.nb_pages, "of the image that such traces are of")
      ->check(CLI::Range(16U, kMaxLoadPages))
      ->capture_default_str();
  app.add_option("--vcpus", load.nb_vcpus, "of each member: pages that it waits for at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--timeout", load.timeout_s, "of the replay, seconds")
      ->check(CLI::Range(1.0, kMaxLoadMillis / 1000.0))
      ->capture_default_str();
  app.add_option("--joins", load.nb_joins, "joins and leaves that are timed")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  // At less the pacing's pauses would be longer than the silence that ends a leave.
  app.add_option("--join-gbps", load.join_gbps, "that are pushed meanwhile")
      ->check(CLI::Range(0.02, 1000.0))
      ->capture_default_str();
}

void add_load_members(CLI::App& app, Options& options) {
  add_app_options(app, options);
  app.add_option("--members", options.load.nb_members, "memtaps that are emulated")
      ->check(CLI::Range(1U, kMaxLoadMembers))
      ->capture_default_str();
  app.add_option("--seconds", options.load.seconds, "that each rate is offered")
      ->check(CLI::Range(0.1, kMaxLoadMillis / 1000.0))
      ->capture_default_str();
  app.add_option("--tolerance", options.load.tolerance,
                 "share of the frames that the worst receiver may lack")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--max-gbps", options.load.max_gbps, "the rate that is offered first")
      ->check(CLI::Range(0.001, 1000.0))
      ->capture_default_str();
  app.add_option("--skip", options.load.skipped, "leave this out")
      ->check(CLI::IsMember({"replay", "join"}));
  add_load_delays(app, options.load);
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
    Subcommand{"socket-send", "bare: send every page once, by a kernel socket", add_socket_send,
               socket_send},
    Subcommand{"socket-receive", "bare: check and put what comes to a kernel socket",
               add_socket_receive, socket_receive},
    Subcommand{"respond", "bare: answer each request with a page", add_peer, respond},
    Subcommand{"round-trips", "bare: ask a responder, page by page", add_trips, trips},
    Subcommand{"local-faults", "bare: faults answered from here", add_faults, faults},
    Subcommand{"client", "fetch an image from a memserver", add_peer_client, client},
    Subcommand{"load-server", "a load's server, for load-members at another port", add_load_server,
               load_server},
    Subcommand{"load-members", "many memtaps on one port: what a load-server's frames come to",
               add_load_members, load_members},
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
