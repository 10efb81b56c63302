// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/control.hpp"

#include <algorithm>
#include <chrono>
#include <map>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>

#include "fabric/base/hex.hpp"
#include "memserver-dpdk/checkpoint_job.hpp"
#include "memserver-dpdk/freeze.hpp"
#include "pmd-config/telemetry_params.hpp"

namespace snowfabric {
namespace {

constexpr double kBytesPerGbit = 1e9 / 8;
/// Beside the clients at work: some that were started again.
constexpr std::size_t kMoreSenders = 64;

Snapshot snapshot_of(const Served& served) {
  Snapshot out;
  append(out, served.stats, kServerCounters);
  out.emplace_back("aside_pages", served.image.nb_aside_pages());
  return out;
}

/// Port and worker counters, then the engines', summed over the images.
Snapshot snapshot_of(const ServerWorker& worker, const Port& port,
                     std::span<const std::unique_ptr<Served>> served) {
  Snapshot out;
  append(out, worker.stats(), kServerPortCounters);
  append(out, worker.drops());
  out.emplace_back("rx_kernel_drops", port.kernel_drops().value_or(0));
  out.emplace_back("mbufs_in_use", port.mbufs_in_use());
  append_sandbox(out);
  Snapshot sum = snapshot_of(*served.front());
  for (const auto& other : served.subspan(1)) {
    const Snapshot more = snapshot_of(*other);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i].second += more[i].second;
  }
  out.insert(out.end(), sum.begin(), sum.end());
  return out;
}

std::string info_json(const ServerOptions& options, const Frozen& frozen, const Port& port,
                      TxMode mode, std::span<const std::unique_ptr<Served>> served) {
  nlohmann::ordered_json json;
  json["images"] = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < served.size(); ++i) {
    const Image& image = served[i]->image;
    json["images"].push_back({{"path", frozen.names[i]},
                              {"image_id", fmt::format("{:016x}", image.image_id())},
                              {"epoch", image.epoch()},
                              {"pages", image.nb_pages()},
                              {"zero_pages", image.nb_zero_pages()},
                              {"group_mac", to_string(group_address(image.image_id()))}});
    if (!frozen.trees.empty()) json["images"].back()["hash_root"] = to_hex(frozen.trees[i].root);
  }
  json["server_mac"] = to_string(port.mac());
  json["mtu"] = port.mtu_bytes();
  json["nb_fragments"] = served.front()->engine.nb_fragments();
  json["tx_mode"] = to_string(mode);
  if (!options.descriptor_file.empty()) json["descriptor"] = options.descriptor_file;
  for (const auto& [name, value] : frozen.freeze) json["freeze"][name] = value;
  return json.dump(2) + "\n";
}

/// For people.
std::string name_of(const Image& image) {
  return fmt::format("{} {:016x}", image.space() == kHashTreeSpace ? "hash tree of image" : "image",
                     image.image_id());
}

/// Logs what happens, from counters, so that the poll loop need not: a thread of its own.
class EventLog {
 public:
  explicit EventLog(std::span<const std::unique_ptr<Served>> served) : served_{served} {}

  void look() {
    for (const auto& s : served_) {
      Seen& seen = seen_[s.get()];
      const auto news = [](std::uint64_t& last, const Counter& now) {
        const std::uint64_t value = now.read();
        return std::exchange(last, value) != value;
      };
      const std::uint64_t clients = s->stats.clients.read();
      if (news(seen.joins, s->stats.joins))
        spdlog::info("{}: client joined, {} now", name_of(s->image), clients);
      if (news(seen.leaves, s->stats.leaves))
        spdlog::info("{}: client left, {} now", name_of(s->image), clients);
      if (news(seen.timed_out, s->stats.clients_timed_out))
        spdlog::warn("{}: client fell silent and was forgotten, {} now", name_of(s->image),
                     clients);
      if (news(seen.refused, s->stats.clients_refused))
        spdlog::error("{}: client refused, the table is full with {}", name_of(s->image), clients);
      if (news(seen.end_game, s->stats.end_game_entered))
        spdlog::info("{}: end game, answers go by unicast", name_of(s->image));
    }
  }

 private:
  struct Seen {
    std::uint64_t joins = 0, leaves = 0, timed_out = 0, refused = 0, end_game = 0;
  };
  std::span<const std::unique_ptr<Served>> served_;
  std::map<const Served*, Seen> seen_;
};

void publish(Telemetry& telemetry, const ServerWorker& worker, const Port& port,
             std::span<const std::unique_ptr<Served>> served) {
  telemetry.publish(
      "/memserver/stats", "Counters of port and engines, summed over the images",
      [&worker, &port, served](std::string_view) { return snapshot_of(worker, port, served); });
  telemetry.publish("/memserver/image", "Counters of one image. Parameter: image id, hexadecimal",
                    [served](std::string_view param) -> std::optional<Snapshot> {
                      const auto id = image_id_of(param);
                      for (const auto& s : served)
                        if (s->image.image_id() == id) return snapshot_of(*s);
                      return std::nullopt;
                    });
  telemetry.publish(
      "/memserver/images", "Images served: pages by image id", [served](std::string_view) {
        Snapshot out;
        for (const auto& s : served)
          out.emplace_back(fmt::format("{:016x}", s->image.image_id()), s->image.nb_pages());
        return out;
      });
}

TxMode choose_tx_mode(const ServerOptions& options, Port& port,
                      std::span<const std::unique_ptr<Served>> served, bool sealed) {
  const auto is_live = [](const auto& s) { return s->image.is_live(); };
  if (options.copy || sealed || std::ranges::any_of(served, is_live)) return TxMode::kCopy;
  for (const auto& s : served)
    if (auto ok = port.register_memory(s->image.bytes()); !ok) {
      spdlog::warn("{}: {}; pages are sent by copy", ok.error().what, strerror(ok.error().errnum));
      return TxMode::kCopy;
    }
  return port.tx_mode();
}

/// Until a signal. @return the last counters
Result<Snapshot> poll(const ServerOptions& options, const Datapath& datapath, TxMode mode,
                      Frozen& frozen, std::span<const std::unique_ptr<Served>> served, Seal* seal,
                      const std::atomic<bool>& stop) {
  const Port& port = datapath.port;
  if (auto ok = confine(options, datapath.profile, 0,
                        {options.info_file, options.stats_file, options.checkpoint_file});
      !ok)
    return std::unexpected(ok.error());
  ServerWorker worker{served, port, mode, options.rx_loss_percent / 100, options.seed, seal};
  const auto images = served.first(frozen.images.size());  // hash trees are behind them
  Telemetry telemetry;
  publish(telemetry, worker, port, images);
  spdlog::info("{}", port.describe());
  for (const auto& s : served)
    spdlog::info("serving {} epoch {}: {} pages, {} zero, group {}, TX {}{}", name_of(s->image),
                 s->image.epoch(), s->image.nb_pages(), s->image.nb_zero_pages(),
                 to_string(group_address(s->image.image_id())), to_string(mode),
                 seal != nullptr ? ", sealed" : "");
  if (!options.info_file.empty())
    if (auto ok = write_file(options.info_file, info_json(options, frozen, port, mode, images));
        !ok)
      return std::unexpected(ok.error());
  EventLog log{served};
  const Watcher watcher{[&log] { log.look(); }};
  if (!stop) frozen.descriptor.keep();
  const CheckpointJob checkpoint{served.front()->image, options.checkpoint_file};
  worker.run(stop, datapath.profile.idle);
  return snapshot_of(worker, port, images);
}

/// Of a parent that is frozen.
void add_parent_options(CLI::App& cli, ServerOptions& options) {
  cli.add_option("--qemu", options.qemu,
                 "freeze the running QEMU behind this QMP socket and serve its memory");
  cli.add_option("--xen", options.xen,
                 "freeze the running Xen domain of this name or number, in its dom0, and serve its "
                 "memory");
  cli.add_option(
         "--xen-ram", options.xen_ram,
         "with --xen: copy its memory, or leave it in place, where less is needed, and copy "
         "a page when the domain touches it; default: copy, if there is room")
      ->transform(CLI::CheckedTransformer(std::map<std::string, xen::Keep>{
          {"copy", xen::Keep::kCopy}, {"in-place", xen::Keep::kInPlace}}));
  cli.add_option("--descriptor", options.descriptor_file,
                 "with --qemu or --xen: write the descriptor that clones start from there; with "
                 "--restore: the image's, to hold the checkpoint to, and for key and hash tree");
  cli.add_option("--free-pages", options.free_pages,
                 "with --qemu: ask at this socket which pages are free, and leave them out");
  cli.add_option("--memtap", options.memtap,
                 "with --qemu, of a VM that is a clone: have the memtap at this socket fetch the "
                 "rest of its memory first");
  cli.add_flag("--detach", options.detach,
               "with --qemu: copy all of its memory, then let go of it: it can be frozen again");
}

/// How fast, and what goes out unasked.
void add_rate_options(CLI::App& cli, ServerOptions& options) {
  const CLI::Range gbps{0.001, 1600.0};
  cli.add_option("--rate-gbps", options.rate_gbps,
                 "rate before the first reports, Gbit/s; default: the profile's")
      ->check(gbps);
  cli.add_option("--max-rate-gbps", options.max_rate_gbps,
                 "rate never exceeded, Gbit/s; default: the profile's")
      ->check(gbps);
  auto* push = cli.add_flag("--push", options.push, "send pages nobody asked for at spare rate");
  cli.add_option("--push-gbps", options.push_gbps,
                 "of that rate they take no more, Gbit/s; default: all")
      ->check(gbps)
      ->needs(push);
}

}  // namespace

void add_server_options(CLI::App& cli, ServerOptions& options) {
  add_app_options(cli, options);
  cli.add_option("IMAGE", options.images, "raw memory images to serve");
  add_parent_options(cli, options);
  cli.add_option("--checkpoint", options.checkpoint_file,
                 "write the image to this file while it is served: --restore serves it again");
  cli.add_option("--restore", options.restore,
                 "serve the image in this file, which --checkpoint wrote, to memtaps that had it "
                 "and to others");
  cli.add_option("--image-id", options.image_ids,
                 "hexadecimal id of each image; default: derived from the content, of a parent at "
                 "random");
  cli.add_option("--epoch", options.epoch, "epoch of the images")->capture_default_str();
  add_rate_options(cli, options);
  cli.add_flag("--copy", options.copy, "never send zero-copy");
  cli.add_flag("--hash-tree", options.hash_tree,
               "serve a hash tree too, whose root goes into the descriptor: memtaps that know it "
               "take no page of anybody else");
  cli.add_option(
         "--end-game", options.end_game,
         "share of the image sent by multicast at which answers turn to unicast; above 1: never")
      ->capture_default_str();
  cli.add_option("--client-timeout", options.client_timeout_s,
                 "forget silent clients after, seconds")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  cli.add_option("--max-clients", options.max_clients, "memtaps of one image at once")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  cli.add_option("--info", options.info_file, "write what is served to this JSON file when ready");
}

ServerConfig engine_config(const ServerOptions& options, const Profile& profile,
                           unsigned mtu_bytes) {
  const double initial = options.rate_gbps > 0 ? options.rate_gbps : profile.rate_initial_gbps;
  const double max = options.max_rate_gbps > 0 ? options.max_rate_gbps : profile.rate_max_gbps;
  ServerConfig config;
  config.incarnation = static_cast<std::uint32_t>(random_id() | 1U);
  config.mtu_bytes = static_cast<std::uint16_t>(mtu_bytes);
  config.push = options.push;
  config.push_bytes_per_s = options.push_gbps * kBytesPerGbit;
  config.max_clients = options.max_clients;
  config.client_timeout = std::chrono::seconds{options.client_timeout_s};
  config.flow.max_bytes_per_s = max * kBytesPerGbit;
  config.flow.initial_bytes_per_s = std::min(initial, max) * kBytesPerGbit;
  config.end_game.enter = options.end_game;
  config.end_game.leave = std::min(config.end_game.leave, options.end_game);
  return config;
}

Result<void> serve(const ServerOptions& options) {
  if (auto ok = check_sources(options); !ok) return ok;
  auto key = read_key(options);
  if (!key) return std::unexpected(key.error());
  const CpuMask cpus;  // before EAL leaves this thread but one
  Result<Frozen> frozen;
  if (!has_parent(options)) frozen = open_files(options);
  if (!frozen) return std::unexpected(frozen.error());
  if (frozen->key) key = frozen->key;
  std::vector<std::unique_ptr<Served>> served;  // before the port, which may hold their memory
  auto datapath = start_datapath(options, "memserver-dpdk", "server", {});
  if (!datapath) return std::unexpected(datapath.error());
  const std::size_t nb_images = std::max<std::size_t>(1, options.images.size());
  const auto seal = make_seal(*key, nb_images * options.max_clients + kMoreSenders);
  if (!seal) return std::unexpected(seal.error());
  const auto mtu = engine_mtu(datapath->port, seal->get());
  if (!mtu) return std::unexpected(mtu.error());
  const std::atomic<bool>& stop = stop_on_signals();
  // A parent is frozen when all else is ready: clones wait from that instant on.
  if (has_parent(options)) frozen = freeze_parent(options, *key, datapath->port.mac(), cpus, stop);
  if (!frozen && stop) {
    spdlog::warn("stopped before anything was served: {}", frozen.error().what);
    return {};
  }
  if (!frozen) return std::unexpected(frozen.error());
  ServerConfig config = engine_config(options, datapath->profile, *mtu);
  if (*seal) config.frame_overhead_bytes = wire::kSealBytes;
  for (Image& image : frozen->images)
    served.push_back(std::make_unique<Served>(std::move(image), config));
  for (ServedTree& tree : frozen->trees)
    served.push_back(std::make_unique<Served>(std::move(tree.nodes), config));
  const TxMode mode = choose_tx_mode(options, datapath->port, served, key->has_value());
  const auto last = poll(options, *datapath, mode, *frozen, served, seal->get(), stop);
  if (!last) return std::unexpected(last.error());
  if (const unsigned leaked = datapath->port.close(); leaked != 0)
    spdlog::error("{} mbufs did not come back to the pool", leaked);
  spdlog::info("stopped");
  return options.stats_file.empty() ? Result<void>{}
                                    : write_file(options.stats_file, to_json(*last));
}

}  // namespace snowfabric
