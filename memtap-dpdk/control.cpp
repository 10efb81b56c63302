// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/control.hpp"

#include <cstring>
#include <optional>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "memtap-dpdk/tree_fetch.hpp"
#include "pmd-config/telemetry_params.hpp"

namespace snowfabric {
namespace {

/// The port's part comes when there is one.
ClientConfig engine_config(const TapOptions& options, const TapImage& image) {
  ClientConfig config;
  config.client_id = random_id();
  config.image_id = image.image_id;
  config.epoch = image.epoch;
  config.server = image.server;
  config.seed = options.seed ^ config.client_id;  // memtaps of one seed do not act as one
  config.max_pages = image.nb_pages != 0 ? image.nb_pages : options.max_image_gib << 18U;
  config.give_up = Nanos{static_cast<std::int64_t>(options.give_up_s * 1e9)};
  config.repair_after = std::min(config.repair_after, config.give_up / 2);
  config.page_give_up = 3 * config.give_up;  // a live server may be slow: this kills the guest
  config.rto.min = Nanos{static_cast<std::int64_t>(options.min_rto_ms * 1e6)};
  return config;
}

Snapshot snapshot_of(const ClientWorker& worker, const ClientStats& engine,
                     const GuestControl& control, const Port& port) {
  Snapshot out;
  append(out, worker.stats(), kClientPortCounters);
  append(out, worker.drops());
  out.emplace_back("rx_kernel_drops", port.kernel_drops().value_or(0));
  out.emplace_back("mbufs_in_use", port.mbufs_in_use());
  append_sandbox(out);
  append(out, engine, kClientCounters);
  append(out, control.host_stats(), kHostCounters);
  append(out, control.guest_totals(), kGuestCounters);
  return out;
}

/// From the join to the request for all of the working set: memtaps that are there when the first
/// of them asks share its answer. On 2 busy CPUs four that were started at once joined within 0.8
/// s.
constexpr Nanos kGatherTime{std::chrono::seconds{2}};

/// Whose sealed frames are remembered: the server's, of some of its former lives, and siblings'.
constexpr std::size_t kMaxSenders = 1024;

}  // namespace

GuestControl::GuestControl(const TapOptions& options, const TapImage& image, ClientEngine& engine,
                           ClientWorker& worker)
    : options_{options},
      image_{image},
      engine_{engine},
      worker_{worker},
      server_{options, image, engine, name_of(image)} {}

void GuestControl::shut_down() {
  if (!listener_) return;
  keep_house();
  for (const auto& guest : listener_->guests()) {
    if (guest->gone() || guest->survives_memtap() || guest->nb_missing() == 0) continue;
    spdlog::warn("guest {} (process {}) is killed: its memory is not complete", guest->id(),
                 guest->pid());
    guest->kill();
    host_stats_.guests_killed.add(1);
  }
  sum_counters();
}

void GuestControl::step(Nanos now) {
  if (auto ok = server_.look(listener_ != nullptr, now); !ok) stop_with(std::move(ok.error()));
  if (!listener_ && engine_.state() == ClientState::kJoined) open_listener(now);
  if (listener_) look_at_guests(now);
  if (now >= next_second_) {
    keep_house();
    next_second_ = now + std::chrono::seconds{1};
  }
  sum_counters();
}

void GuestControl::stop_with(Error error) {
  if (verdict_) verdict_ = std::unexpected(std::move(error));
  request_stop();
}

void GuestControl::open_listener(Nanos now) {
  if (image_.nb_pages != 0 && image_.nb_pages != engine_.nb_pages())
    return stop_with(
        {EINVAL, fmt::format("the memserver's image has {} pages, the descriptor {} says "
                             "{}: are they of one freeze?",
                             engine_.nb_pages(), options_.descriptor, image_.nb_pages)});
  const ImageGeometry geometry{
      .image_id = image_.image_id, .nb_pages = engine_.nb_pages(), .epoch = image_.epoch};
  keep_pages(geometry);
  auto listener =
      GuestListener::create({.socket_path = options_.socket,
                             .presence_dir = options_.presence_dir.empty() ? options_.socket + ".d"
                                                                           : options_.presence_dir,
                             .image = geometry,
                             .qemu = image_.qemu ? &*image_.qemu : nullptr,
                             .xen = image_.xen ? &*image_.xen : nullptr,
                             .kept = kept_.get(),
                             .guest_uids = options_.guest_uids,
                             .max_guests = options_.max_guests});
  if (!listener) return stop_with(std::move(listener.error()));
  listener_ = std::move(*listener);
  if (kept_)  // not before: the socket, and so the name beside it, might be another memtap's
    if (auto ok = kept_->publish(options_.socket + ".image"); !ok)
      spdlog::warn("no clone can map the image: {}: {}", ok.error().what,
                   std::strerror(ok.error().errnum));
  housekeeping_ = std::make_unique<Housekeeping>(options_.record, kept_.get());
  host_ = std::make_unique<Host>(engine_, host_stats_, options_.prefetch_pages,
                                 options_.buffer_pages, kept_.get());
  host_->load(image_.working_set, now + kGatherTime);
  host_->prefetch(image_.prefetch);
  worker_.serve(*host_, listener_->epoll_fd(), kept_.get());
  spdlog::info("guests connect to {}", options_.socket);
}

/// Without it all works, but a clone that comes late costs the wire again.
void GuestControl::keep_pages(const ImageGeometry& geometry) {
  if (!options_.keep) return;
  auto kept = KeptImage::create(geometry);
  if (!kept) {
    spdlog::warn("no pages are kept for later clones: {}: {}", kept.error().what,
                 std::strerror(kept.error().errnum));
    return;
  }
  kept_ = std::move(*kept);
  for (const PageRange& range : image_.zeros) kept_->put_zeros(range);
}

void GuestControl::keep_house() {
  if (!host_) return;
  if (kept_ && std::exchange(nb_mapped_, kept_->nb_kept()) != kept_->nb_kept())
    housekeeping_->unmap_kept();
  const std::uint64_t nb_recorded = host_stats_.recorded_pages.read();
  if (!options_.record.empty() && std::exchange(nb_written_, nb_recorded) != nb_recorded)
    housekeeping_->write(host_->recorded());
  if (host_->recorded().size() == Host::kMaxRecorded && !std::exchange(said_full_, true))
    spdlog::warn("the record of the working set is full at {} ranges: later pages are left out",
                 Host::kMaxRecorded);
  if (const auto overwrote = host_stats_.keep_overwrote.read();
      std::exchange(last_overwrote_, overwrote) != overwrote)
    spdlog::error(
        "{} pages of {}.image were zeros in the file before they came: a process maps it without "
        "libsf-clone.so, and clones that read them until now have wrong memory",
        overwrote, options_.socket);
}

void GuestControl::greet(ProcessGuest& guest) {
  host_->attach(guest);
  {
    const std::lock_guard lock{by_id_mutex_};
    by_id_.emplace(guest.id(), &guest);
  }
  host_stats_.guests_attached.add(1);
  spdlog::info("guest {} attached: process {}, presence {}", guest.id(), guest.pid(),
               guest.presence_path());
}

void GuestControl::bury(const ProcessGuest& guest) {
  completions_.on_gone(guest);
  host_->detach(guest);
  {
    const std::lock_guard lock{by_id_mutex_};
    by_id_.erase(guest.id());
  }
  host_stats_.guests_gone.add(1);
  add_counters(of_gone_, guest.counters());
  spdlog::info("guest {} is gone: {} pages installed, {} zero", guest.id(),
               guest.counters().installed_pages.read(), guest.counters().zero_pages.read());
}

/// What it means depends on the guest: a VM is paused, what has a userfaultfd alone cannot be.
void GuestControl::report_failed(Nanos now) {
  const std::uint64_t failed = host_stats_.failed_pages.read();
  if (failed == last_failed_ || now < next_failed_log_) return;
  next_failed_log_ = now + std::chrono::seconds{1};
  last_failed_ = failed;
  sum_counters();
  spdlog::error(
      "{} pages failed so far: QEMU and Xen clones that waited for one were paused, {} times; {} "
      "pages are SIGBUS for other guests; where the kernel cannot poison they are killed ({} "
      "guests were so far, for any reason)",
      failed, totals_.pauses.read(), totals_.poisoned_pages.read(), totals_.kills.read());
}

void GuestControl::look_at_guests(Nanos now) {
  ListenerEvents events = listener_->poll(now);
  for (ProcessGuest* guest : events.attached) greet(*guest);
  for (CompletionRequest& request : events.to_complete) {
    spdlog::info("process {} is to get all its memory", request.guest);
    completions_.begin(std::move(request), listener_->guests(), *host_);
  }
  const bool come = pages_come(now);
  completions_.step(*host_, come || engine_.state() != ClientState::kServerDead, now);
  for (const auto& guest : events.gone) bury(*guest);
  host_stats_.guests_of_others.add(events.nb_of_others);
  for (const Error& error : events.rejected) {
    host_stats_.guests_rejected.add(1);
    if (now < quiet_until_) continue;
    quiet_until_ = now + std::chrono::seconds{1};
    spdlog::warn("guest refused: {}: {}", error.what, std::strerror(error.errnum));
  }
  for (const auto& guest : listener_->guests())
    if (!guest->trouble().empty() && !guest->gone()) {
      const bool killed = guest->kill();
      spdlog::error("guest {} (process {}) {}: {}", guest->id(), guest->pid(),
                    killed ? "is killed" : "could not be killed", guest->trouble());
      guest->mark_gone();
      host_stats_.guests_killed.add(killed ? 1 : 0);
    }
  report_failed(now);
  host_stats_.guests.set(listener_->guests().size());
}

Snapshot GuestControl::guest_pids() const {
  const std::lock_guard lock{by_id_mutex_};
  Snapshot pids;
  for (const auto& [id, guest] : by_id_)
    pids.emplace_back(std::to_string(id), static_cast<std::uint64_t>(guest->pid()));
  return pids;
}

std::optional<Snapshot> GuestControl::guest_counters(std::string_view id) const {
  const auto number = guest_id_of(id);
  if (!number) return std::nullopt;
  const std::lock_guard lock{by_id_mutex_};
  const auto found = by_id_.find(*number);
  if (found == by_id_.end()) return std::nullopt;
  Snapshot counters;
  append(counters, found->second->counters(), kGuestCounters);
  const LatencyHistogram& times = found->second->fault_times();
  for (const auto& [name, share] :
       {std::pair{"fault_ns_p50", 0.5}, std::pair{"fault_ns_p99", 0.99}})
    counters.emplace_back(name, static_cast<std::uint64_t>(times.percentile(share).count()));
  return counters;
}

/// Siblings may send what a dead server owes.
bool GuestControl::pages_come(Nanos now) noexcept {
  const std::uint64_t nb_pages = engine_.stats().rx_pages.read();
  if (std::exchange(nb_rx_pages_, nb_pages) != nb_pages) last_page_ = now;
  return now - last_page_ < engine_.config().repair_after;
}

void GuestControl::sum_counters() noexcept {
  for (const auto& info : kGuestCounters) {
    std::uint64_t sum = (of_gone_.*info.member).read();
    if (listener_)
      for (const auto& guest : listener_->guests()) sum += (guest->counters().*info.member).read();
    (totals_.*info.member).set(sum);
  }
}

namespace {

/// Until a signal. @param last  gets the last counters
Result<void> fetch(const TapOptions& options, const TapImage& image, ClientConfig config,
                   const Datapath& datapath, Seal* seal, Snapshot& last) {
  const std::atomic<bool>& stop = stop_on_signals();
  std::optional<HashTree> tree;
  if (image.root) {
    auto fetched = fetch_hash_tree(options, image, config, datapath, seal, stop);
    if (!fetched && stop) return {};
    if (!fetched) return std::unexpected(fetched.error());
    config.tree = &tree.emplace(std::move(*fetched));
  }
  const Port& port = datapath.port;
  ClientStats stats;
  ClientEngine engine{config, stats};
  ClientWorker worker{engine, port, options.rx_loss_percent / 100, options.seed, seal};
  GuestControl control{options, image, engine, worker};
  Telemetry telemetry;
  telemetry.publish("/memtap/stats", "Counters of port, engine, host and guests",
                    [&](std::string_view) { return snapshot_of(worker, stats, control, port); });
  telemetry.publish("/memtap/guests", "Guests attached: process by guest id",
                    [&](std::string_view) { return control.guest_pids(); });
  telemetry.publish("/memtap/guest", "Counters of one guest. Parameter: its id",
                    [&](std::string_view id) { return control.guest_counters(id); });
  worker.run(stop, datapath.profile.idle, [&](Nanos now) { control.step(now); });
  control.shut_down();
  last = snapshot_of(worker, stats, control, port);
  return control.verdict();
}

}  // namespace

Result<void> tap(const TapOptions& options) {
  const auto image = image_of(options);
  if (!image) return std::unexpected(image.error());
  auto datapath =
      start_datapath(options, "memtap-dpdk", "client", {group_address(image->image_id)});
  if (!datapath) return std::unexpected(datapath.error());
  Port& port = datapath->port;
  const auto seal = make_seal(image->key, kMaxSenders);
  if (!seal) return std::unexpected(seal.error());
  const auto mtu = engine_mtu(port, seal->get());
  if (!mtu) return std::unexpected(mtu.error());
  ClientConfig config = engine_config(options, *image);
  config.mac = port.mac();
  config.mtu_bytes = *mtu;
  spdlog::info("{}{}", port.describe(), *seal ? ", frames sealed" : "");
  // A guest whose memory cannot be had is killed, whoever its user is.
  if (auto ok = confine(options, datapath->profile, capability(CAP_KILL),
                        {options.stats_file, options.record});
      !ok)
    return ok;
  Snapshot last;
  auto verdict = fetch(options, *image, config, *datapath, seal->get(), last);
  if (const unsigned leaked = port.close(); leaked != 0)
    spdlog::error("{} mbufs did not come back to the pool", leaked);
  spdlog::info("stopped");
  if (!options.stats_file.empty() && !last.empty())
    if (auto ok = write_file(options.stats_file, to_json(last)); !ok) return ok;
  return verdict;
}

}  // namespace snowfabric
