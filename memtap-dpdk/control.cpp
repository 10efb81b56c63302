// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/control.hpp"

#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace snowfabric {
namespace {

std::optional<std::uint64_t> parse_number(std::string_view text, int base) {
  if (base == 0 && (text.starts_with("0x") || text.starts_with("0X")))
    return parse_number(text.substr(2), 16);
  std::uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, base == 0 ? 10 : base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<PageRange> parse_range(std::string_view text) {
  const auto dash = text.find('-');
  const auto first = parse_number(text.substr(0, dash), 0);
  const auto last = dash == std::string_view::npos ? first : parse_number(text.substr(dash + 1), 0);
  if (!first || !last || *last < *first || *last - *first >= 0xffffffff) return std::nullopt;
  return PageRange{Gfn{*first}, static_cast<std::uint32_t>(*last - *first + 1)};
}

/// What the options alone say; the port's part comes when there is one.
Result<ClientConfig> engine_config(const TapOptions& options) {
  const auto image_id = parse_number(options.image_id, 16);
  if (!image_id || *image_id == 0)
    return fail(EINVAL, fmt::format("--image-id {}: not a 64-bit hexadecimal number above 0",
                                    options.image_id));
  ClientConfig config;
  config.client_id = random_id();
  config.image_id = *image_id;
  config.epoch = options.epoch;
  config.seed = options.seed;
  config.give_up = Nanos{static_cast<std::int64_t>(options.give_up_s * 1e9)};
  config.page_give_up = 3 * config.give_up;  // a live server may be slow: this kills the guest
  config.rto.min = Nanos{static_cast<std::int64_t>(options.min_rto_ms * 1e6)};
  if (!options.server.empty()) {
    config.server = parse_mac(options.server);
    if (!config.server)
      return fail(EINVAL, fmt::format("--server {}: not a MAC address", options.server));
  }
  return config;
}

Snapshot snapshot_of(const ClientWorker& worker, const ClientStats& engine,
                     const GuestControl& control, const Port& port) {
  Snapshot out;
  append(out, worker.stats(), kClientPortCounters);
  append(out, worker.drops());
  out.emplace_back("rx_kernel_drops", port.kernel_drops().value_or(0));
  out.emplace_back("mbufs_in_use", port.mbufs_in_use());
  append(out, engine, kClientCounters);
  append(out, control.host_stats(), kHostCounters);
  append(out, control.guest_totals(), kGuestCounters);
  return out;
}

bool complete(const ProcessGuest& guest) {
  for (std::uint64_t p = 0; p < guest.presence().nb_pages(); ++p)
    if (guest.presence().absent(Gfn{p})) return false;
  return true;
}

}  // namespace

void add_tap_options(CLI::App& cli, TapOptions& options) {
  add_app_options(cli, options);
  cli.add_option("--image-id", options.image_id, "image to fetch, hexadecimal")->required();
  cli.add_option("--epoch", options.epoch, "epoch of the image")->capture_default_str();
  cli.add_option("--server", options.server, "memserver's MAC address; default: ask by broadcast");
  cli.add_option("--socket", options.socket, "unix socket where guests hand over userfaultfds")
      ->required();
  cli.add_option("--presence-dir", options.presence_dir,
                 "where presence bitmaps lie; default: SOCKET.d");
  cli.add_option("--prefetch", options.prefetch_pages, "neighbour pages to ask for with a fault")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  cli.add_option("--prefetch-list", options.prefetch_list,
                 "file of pages to fetch once a guest is there: 17 or 0x20-0x3f, one a line");
  cli.add_option("--buffer", options.buffer_pages, "pages of the arrival buffer")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  cli.add_option("--max-guests", options.max_guests, "guests at once")->capture_default_str();
  cli.add_option("--give-up", options.give_up_s,
                 "seconds of a silent memserver after which faults fail with an error; one page "
                 "that a live memserver does not deliver fails after three times as long")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  cli.add_option("--min-rto", options.min_rto_ms, "shortest retry time-out, in milliseconds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

Result<std::vector<PageRange>> read_prefetch_list(const std::string& path) {
  std::ifstream file{path};
  if (!file) return fail(errno, fmt::format("open {}", path));
  std::vector<PageRange> ranges;
  std::string line;
  for (unsigned number = 1; std::getline(file, line); ++number) {
    line.erase(std::min(line.find('#'), line.size()));
    std::erase_if(line, [](char c) { return c == ' ' || c == '\t' || c == '\r'; });
    if (line.empty()) continue;
    const auto range = parse_range(line);
    if (!range)
      return fail(EINVAL, fmt::format("{}:{}: neither a page number nor a range", path, number));
    ranges.push_back(*range);
  }
  return ranges;
}

GuestControl::GuestControl(const TapOptions& options, ClientEngine& engine, ClientWorker& worker)
    : options_{options}, engine_{engine}, worker_{worker} {}

void GuestControl::shut_down() {
  if (!listener_) return;
  for (const auto& guest : listener_->guests()) {
    if (guest->gone() || complete(*guest)) continue;
    spdlog::warn("guest {} (process {}) is killed: its memory is not complete", guest->id(),
                 guest->pid());
    guest->kill();
    host_stats_.guests_killed.add(1);
  }
  sum_counters();
}

void GuestControl::step(Nanos now) {
  look_at_server();
  if (!listener_ && engine_.state() == ClientState::kJoined) open_listener();
  if (listener_) look_at_guests(now);
  sum_counters();
}

void GuestControl::stop_with(int errnum, std::string what) {
  if (verdict_) verdict_ = fail(errnum, std::move(what));
  request_stop();
}

void GuestControl::look_at_server() {
  const ClientState state = engine_.state();
  if (state == last_state_) return;
  switch (state) {
    case ClientState::kJoined:
      spdlog::info("joined image {} epoch {}: {} pages, server {}, MTU {}", options_.image_id,
                   options_.epoch, engine_.nb_pages(), to_string(engine_.server()),
                   engine_.server_mtu_bytes());
      break;
    case ClientState::kServerDead:
      if (!listener_ && engine_.refused())
        return stop_with(ENOSPC, fmt::format("the memserver of image {} has no room for another "
                                             "client; raise its --max-clients",
                                             options_.image_id));
      if (!listener_)
        return stop_with(
            ETIMEDOUT,
            fmt::format("no memserver answered for image {} epoch {} on {} within {} s; "
                        "is it running, with this image, on the same segment?",
                        options_.image_id, options_.epoch, options_.device, options_.give_up_s));
      spdlog::error("the memserver is silent for {} s: faults fail until it is back",
                    options_.give_up_s);
      break;
    case ClientState::kMtuTooSmall:
      return stop_with(EMSGSIZE,
                       fmt::format("the memserver sends frames for MTU {}, this port has less; "
                                   "raise the MTU here or start the memserver with --mtu",
                                   engine_.server_mtu_bytes()));
    case ClientState::kJoining: break;
  }
  last_state_ = state;
}

void GuestControl::open_listener() {
  const auto image_id = parse_number(options_.image_id, 16);
  auto listener =
      GuestListener::create({.socket_path = options_.socket,
                             .presence_dir = options_.presence_dir.empty() ? options_.socket + ".d"
                                                                           : options_.presence_dir,
                             .image = {.image_id = image_id.value_or(0),
                                       .nb_pages = engine_.nb_pages(),
                                       .epoch = options_.epoch},
                             .max_guests = options_.max_guests});
  if (!listener) return stop_with(listener.error().errnum, listener.error().what);
  host_ =
      std::make_unique<Host>(engine_, host_stats_, options_.prefetch_pages, options_.buffer_pages);
  if (!options_.prefetch_list.empty()) {
    auto list = read_prefetch_list(options_.prefetch_list);
    if (!list) return stop_with(list.error().errnum, list.error().what);
    host_->prefetch(std::move(*list));
  }
  listener_ = std::move(*listener);
  worker_.serve(*host_, listener_->epoll_fd());
  spdlog::info("guests connect to {}", options_.socket);
}

void GuestControl::look_at_guests(Nanos now) {
  ListenerEvents events = listener_->poll(now);
  for (ProcessGuest* guest : events.attached) {
    host_->attach(*guest);
    host_stats_.guests_attached.add(1);
    spdlog::info("guest {} attached: process {}, presence {}", guest->id(), guest->pid(),
                 guest->presence_path());
  }
  for (const auto& guest : events.gone) {
    host_->detach(*guest);
    host_stats_.guests_gone.add(1);
    add_counters(of_gone_, guest->counters());
    spdlog::info("guest {} is gone: {} pages installed, {} zero", guest->id(),
                 guest->counters().installed_pages.read(), guest->counters().zero_pages.read());
  }
  for (const Error& error : events.rejected) {
    host_stats_.guests_rejected.add(1);
    if (now < quiet_until_) continue;
    quiet_until_ = now + std::chrono::seconds{1};
    spdlog::warn("guest refused: {}: {}", error.what, std::strerror(error.errnum));
  }
  for (const auto& guest : listener_->guests())
    if (!guest->trouble().empty() && !guest->gone()) {
      spdlog::error("guest {} (process {}) is killed: {}", guest->id(), guest->pid(),
                    guest->trouble());
      guest->kill();
      guest->mark_gone();
      host_stats_.guests_killed.add(1);
    }
  if (const auto failed = host_stats_.failed_pages.read(); failed != last_failed_) {
    spdlog::error(
        "{} pages failed so far: their guests get SIGBUS, or are killed where the kernel cannot "
        "poison",
        failed);
    last_failed_ = failed;
  }
  host_stats_.guests.set(listener_->guests().size());
}

void GuestControl::sum_counters() noexcept {
  for (const auto& info : kGuestCounters) {
    std::uint64_t sum = (of_gone_.*info.member).read();
    if (listener_)
      for (const auto& guest : listener_->guests()) sum += (guest->counters().*info.member).read();
    (totals_.*info.member).set(sum);
  }
}

Result<void> tap(const TapOptions& options) {
  auto config = engine_config(options);
  if (!config) return std::unexpected(config.error());
  auto datapath =
      start_datapath(options, "memtap-dpdk", "client", {group_address(config->image_id)});
  if (!datapath) return std::unexpected(datapath.error());
  Port& port = datapath->port;
  config->mac = port.mac();
  config->mtu_bytes = static_cast<std::uint16_t>(port.mtu_bytes());
  spdlog::info("{}", port.describe());
  ClientStats stats;
  Result<void> verdict;
  Snapshot last;
  {
    ClientEngine engine{*config, stats};
    ClientWorker worker{engine, port, options.rx_loss_percent / 100, options.seed};
    GuestControl control{options, engine, worker};
    Telemetry telemetry;
    telemetry.publish("/memtap/stats", "Counters of port, engine, host and guests",
                      [&](std::string_view) { return snapshot_of(worker, stats, control, port); });
    worker.run(stop_on_signals(), datapath->profile.idle, [&](Nanos now) { control.step(now); });
    control.shut_down();
    verdict = control.verdict();
    last = snapshot_of(worker, stats, control, port);
  }
  if (const unsigned leaked = port.close(); leaked != 0)
    spdlog::error("{} mbufs did not come back to the pool", leaked);
  spdlog::info("stopped");
  if (!options.stats_file.empty())
    if (auto ok = write_file(options.stats_file, to_json(last)); !ok) return ok;
  return verdict;
}

}  // namespace snowfabric
