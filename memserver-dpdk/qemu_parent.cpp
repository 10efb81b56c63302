// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/qemu_parent.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <sys/socket.h>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/clone_parent.hpp"
#include "memserver-dpdk/free_pages.hpp"
#include "memserver-dpdk/parent_checks.hpp"
#include "memserver-dpdk/process.hpp"
#include "memserver-dpdk/qmp.hpp"

namespace snowfabric {
namespace {

using Json = Qmp::Json;
using Clock = std::chrono::steady_clock;

constexpr const char* kFdName = "snowfabric";
constexpr auto kVerdictTimeout = std::chrono::seconds{10};
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 40U;  // bytes a second

constexpr const char* kPostcopy = "postcopy-ram";  // on in clones, and bars any other way

Json capability(const char* name, bool on) { return {{"capability", name}, {"state", on}}; }

Result<bool> is_capable(Qmp& qmp, const char* name) {
  const auto all = qmp.execute("query-migrate-capabilities");
  if (!all) return std::unexpected(all.error());
  return std::ranges::find(*all, capability(name, true)) != all->end();
}

/// A migration capability for the time of a freeze; the parent is as before, whatever happens.
class MigrationMode {
 public:
  static Result<MigrationMode> begin(Qmp& qmp, const char* name) {
    const auto before = qmp.execute("query-migrate-parameters");
    if (!before) return std::unexpected(before.error());
    const auto postcopy = is_capable(qmp, kPostcopy);
    if (!postcopy) return std::unexpected(postcopy.error());
    MigrationMode mode{qmp, name, *postcopy, number_of(*before, "max-bandwidth")};
    if (auto ok = mode.set(true); !ok) return std::unexpected(ok.error());
    if (auto ok = qmp.execute("migrate-set-parameters", {{"max-bandwidth", kUnlimited}}); !ok)
      return std::unexpected(ok.error());
    return mode;
  }
  MigrationMode(MigrationMode&& from) noexcept
      : qmp_{std::exchange(from.qmp_, nullptr)},
        name_{from.name_},
        postcopy_{from.postcopy_},
        bandwidth_{from.bandwidth_} {}
  MigrationMode& operator=(MigrationMode&&) = delete;
  ~MigrationMode() {
    if (qmp_ == nullptr) return;
    // If QEMU is gone there is nothing to set back.
    [[maybe_unused]] const auto off = set(false);
    if (bandwidth_ == 0) return;
    [[maybe_unused]] const auto set =
        qmp_->execute("migrate-set-parameters", {{"max-bandwidth", bandwidth_}});
  }

 private:
  MigrationMode(Qmp& qmp, const char* name, bool postcopy, std::uint64_t bandwidth)
      : qmp_{&qmp}, name_{name}, postcopy_{postcopy}, bandwidth_{bandwidth} {}
  Result<void> set(bool on) {
    Json all = Json::array({capability(name_, on)});
    if (postcopy_) all.push_back(capability(kPostcopy, !on));
    const auto done = qmp_->execute("migrate-set-capabilities", {{"capabilities", all}});
    if (!done) return std::unexpected(done.error());
    return {};
  }
  Qmp* qmp_;
  const char* name_;
  bool postcopy_;  // was on before
  std::uint64_t bandwidth_;
};

/// A VM that stands still while this lives, and then runs on if it ran before.
class StoppedVm {
 public:
  static Result<StoppedVm> stop(Qmp& qmp) {
    const auto status = qmp.execute("query-status");
    if (!status) return std::unexpected(status.error());
    StoppedVm vm{text_of(*status, "status") == "running" ? &qmp : nullptr};
    if (vm.qmp_ == nullptr) return vm;
    if (auto ok = qmp.execute("stop"); !ok) return std::unexpected(ok.error());
    return vm;
  }
  StoppedVm(StoppedVm&& from) noexcept
      : qmp_{std::exchange(from.qmp_, nullptr)}, since_{from.since_} {}
  StoppedVm& operator=(StoppedVm&&) = delete;
  ~StoppedVm() { [[maybe_unused]] const auto done = resume(); }

  [[nodiscard]] Clock::time_point since() const noexcept { return since_; }
  /// @return how long it stood still
  Result<std::chrono::microseconds> resume() {
    if (Qmp* qmp = std::exchange(qmp_, nullptr); qmp != nullptr)
      if (auto ok = qmp->execute("cont"); !ok) return std::unexpected(ok.error());
    return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since_);
  }

 private:
  explicit StoppedVm(Qmp* qmp) : qmp_{qmp} {}
  Qmp* qmp_;  // nullptr: nothing to resume
  Clock::time_point since_ = Clock::now();
};

/// Both ends of a channel; QEMU keeps its own.
Result<UniqueFd> channel_from(Qmp& qmp) {
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail(errno, "socketpair for the parent's memory");
  UniqueFd ours{ends[0]};
  const UniqueFd theirs{ends[1]};
  if (auto ok = qmp.execute("getfd", {{"fdname", kFdName}}, theirs.get()); !ok)
    return std::unexpected(ok.error());
  return ours;
}

/// After the stream's end: what QEMU says of it. @return the pause
Result<std::chrono::microseconds> verdict_of(Qmp& qmp) {
  for (const auto deadline = Clock::now() + kVerdictTimeout; Clock::now() < deadline;) {
    const auto info = qmp.execute("query-migrate");
    if (!info) return std::unexpected(info.error());
    const std::string status = text_of(*info, "status");
    if (status == "completed") return std::chrono::milliseconds{number_of(*info, "downtime")};
    if (status == "failed" || status == "cancelled" || status == "none")
      return fail(EREMOTEIO,
                  fmt::format("QEMU's snapshot {}: {}", status, text_of(*info, "error-desc")));
    usleep(1000);  // the end of the stream comes a moment before the verdict
  }
  return fail(ETIMEDOUT, "QEMU does not end its snapshot");
}

std::array<std::uint8_t, 16> parse_uuid(std::string_view text) {
  std::array<std::uint8_t, 16> uuid{};
  std::size_t nb_digits = 0;
  for (const char c : text) {
    if (c == '-' || nb_digits == 32) continue;
    const auto digit = std::string_view{"0123456789abcdef"}.find(c);
    if (digit == std::string_view::npos) return {};
    uuid[nb_digits / 2] = static_cast<std::uint8_t>(std::size_t{uuid[nb_digits / 2]} << 4U | digit);
    ++nb_digits;
  }
  return uuid;
}

Result<void> describe_parent(Qmp& qmp, Descriptor& descriptor) {
  const auto name = qmp.execute("query-name");
  const auto uuid = qmp.execute("query-uuid");
  for (const auto* answer : {&name, &uuid})
    if (!*answer) return std::unexpected(answer->error());
  descriptor.parent_name = text_of(*name, "name");
  descriptor.parent_uuid = parse_uuid(text_of(*uuid, "UUID"));
  descriptor.machine_args = strings_of(qmp.pid(), "cmdline");
  return {};
}

void describe_memory(const qemu::State& state, const std::vector<PageRange>& zeros,
                     const QemuFreezeOptions& options, Descriptor& descriptor) {
  descriptor.image_id = options.image_id;
  descriptor.epoch = options.epoch;
  descriptor.group = group_address(options.image_id);
  descriptor.spaces = {{.space = 0, .nb_pages = qemu::nb_pages(state.blocks)}};
  descriptor.blocks = state.blocks;
  descriptor.sections = qemu::to_sections(state);
  if (zeros.size() <= kMaxPageRanges) descriptor.zero_pages = zeros;  // nobody depends on them
}

/// A stream that ended early, and why by QEMU's own words; or one way that failed and the other.
Error both(const Error& ours, const Error& theirs) {
  return {ours.errnum, fmt::format("{} ({})", ours.what, theirs.what)};
}

struct Migrated {
  FrozenMemory memory;
  std::chrono::microseconds pause;  ///< as QEMU measured it
};

/// What we cannot take is said to nobody: a QEMU 7.2 whose background snapshot is broken off hangs.
void hear_out(int channel) {
  std::array<std::byte, 65536> rest;
  for (;;) {
    const ssize_t n = recv(channel, rest.data(), rest.size(), 0);
    if (n == 0 || (n < 0 && errno != EINTR)) return;
  }
}

/// Has QEMU send its state, and takes it.
Result<Migrated> migrate(Qmp& qmp, std::uint64_t nb_live_pages, std::optional<int> progress_fd) {
  auto channel = channel_from(qmp);
  if (!channel) return std::unexpected(channel.error());
  if (auto ok = qmp.execute("migrate", {{"uri", fmt::format("fd:{}", kFdName)}}); !ok)
    return std::unexpected(ok.error());
  auto memory = FrozenMemory::take(channel->get(), nb_live_pages, progress_fd);
  if (!memory) hear_out(channel->get());
  *channel = UniqueFd{};
  const auto pause = verdict_of(qmp);
  if (!memory) return std::unexpected(pause ? memory.error() : both(memory.error(), pause.error()));
  if (!pause) return std::unexpected(pause.error());
  return Migrated{std::move(*memory), *pause};
}

FrozenParent complete(FrozenMemory memory, std::shared_ptr<CowMemory> live,
                      const QemuFreezeOptions& options, Descriptor descriptor) {
  std::vector<PageRange> zeros;
  if (live) zeros = live->untouched();
  memory.append_zeros(live ? live->nb_pages() : 0, zeros);
  describe_memory(memory.state(), zeros, options, descriptor);
  return {.memory = std::move(memory),
          .live = std::move(live),
          .descriptor = std::move(descriptor),
          .zeros = std::move(zeros)};
}

Result<FrozenParent> freeze_by_snapshot(Qmp& qmp, const QemuFreezeOptions& options,
                                        Descriptor descriptor) {
  const auto mode = MigrationMode::begin(qmp, "background-snapshot");
  if (!mode) return std::unexpected(explained(mode.error(), qmp.pid()));
  const auto began = Clock::now();
  descriptor.frozen_at_ns = wall_clock_ns();
  auto migrated = migrate(qmp, 0, options.progress_fd);
  if (!migrated) return std::unexpected(migrated.error());
  auto parent = complete(std::move(migrated->memory), nullptr, options, std::move(descriptor));
  parent.kind = FreezeKind::kSnapshot;
  if (!options.free_pages_path.empty())
    parent.why_none_avoided = "without the preload library nobody knows what the guest writes";
  parent.since = began;
  parent.pause = migrated->pause;
  return parent;
}

/// What the guest says is free, and where QEMU has it.
struct FreeMemory {
  std::vector<FrameRange> frames;
  std::vector<RamSpan> spans;
};

/// Between arm() and freeze(): only there is it known what is written.
Result<FreeMemory> ask_free_memory(Qmp& qmp, const QemuFreezeOptions& options,
                                   const CowMemory& live) {
  if (options.free_pages_path.empty()) return {};
  auto spans = ask_ram_spans(qmp);
  if (!spans) return std::unexpected(spans.error());
  auto frames =
      ask_free_frames(options.free_pages_path, live.nb_pages(), patience_with(live.nb_pages()));
  if (!frames) return std::unexpected(frames.error());
  return FreeMemory{std::move(*frames), std::move(*spans)};
}

/// After freeze().
Result<AvoidedPages> avoidable(const Result<FreeMemory>& free, const qemu::State& state,
                               const CowMemory& live) {
  if (!free) return std::unexpected(free.error());
  if (free->frames.empty()) return AvoidedPages{};
  return avoidable(free->frames, free->spans, state.blocks, live.nb_pages(),
                   [&live](Gfn page) { return live.written_before_freeze(page); });
}

void leave_out(AvoidedPages avoided, FrozenParent& parent) {
  parent.nb_avoided_pages = avoided.nb_pages;
  parent.nb_free_pages = avoided.nb_free;
  parent.zeros.insert(parent.zeros.end(), avoided.ranges.begin(), avoided.ranges.end());
  if (avoided.ranges.size() <= kMaxPageRanges)  // as zero_pages
    parent.descriptor.absent_pages = std::move(avoided.ranges);
}

/// Protects while the VM runs, so that little is left to do while it stands still.
Result<FrozenParent> freeze_by_shim(Qmp& qmp, std::unique_ptr<CowMemory> memory,
                                    const QemuFreezeOptions& options, Descriptor descriptor) {
  const std::shared_ptr<CowMemory> live{std::move(memory)};
  const auto mode = MigrationMode::begin(qmp, "x-ignore-shared");
  if (!mode) return std::unexpected(mode.error());
  if (auto ok = live->arm(); !ok) return std::unexpected(ok.error());
  const auto free = ask_free_memory(qmp, options, *live);
  auto stopped = StoppedVm::stop(qmp);
  if (!stopped) return std::unexpected(stopped.error());
  if (auto ok = live->freeze(); !ok) return std::unexpected(ok.error());
  descriptor.frozen_at_ns = wall_clock_ns();
  auto migrated = migrate(qmp, live->nb_pages(), std::nullopt);
  if (!migrated) return std::unexpected(migrated.error());
  const auto pause = stopped->resume();
  if (!pause) return std::unexpected(pause.error());
  auto parent = complete(std::move(migrated->memory), live, options, std::move(descriptor));
  if (auto avoided = avoidable(free, parent.memory.state(), *live); avoided)
    leave_out(std::move(*avoided), parent);
  else
    parent.why_none_avoided = avoided.error().what;
  live->leave_out(parent.zeros);
  parent.kind = FreezeKind::kShim;
  parent.since = stopped->since();
  parent.pause = *pause;
  return parent;
}

/// RAM that can stay in place.
Result<std::unique_ptr<CowMemory>> memory_in_place(Qmp& qmp, const std::string& shim) {
  if (auto ok = refuse_returned_memory(qmp); !ok) return std::unexpected(ok.error());
  auto memory = CowMemory::attach(shim);
  if (!memory) return memory;
  if (auto ok = check_only_backend(qmp, (*memory)->nb_pages() * kPageSize); !ok)
    return std::unexpected(ok.error());
  return memory;
}

/// A VM that is a clone itself is frozen like any other once it has all its memory.
Result<void> complete_first(Qmp& qmp, const QemuFreezeOptions& options,
                            const std::atomic<bool>& stop) {
  if (!options.memtap_path.empty()) {
    const auto known = complete_clone(options.memtap_path, qmp.pid(), stop, options.progress_fd);
    if (!known) return std::unexpected(known.error());
  }
  return refuse_incomplete_clones(qmp);
}

}  // namespace

Result<FrozenParent> freeze_qemu(const QemuFreezeOptions& options, const std::atomic<bool>& stop) {
  auto qmp = Qmp::connect(options.qmp_path);
  if (!qmp) return std::unexpected(qmp.error());
  if (auto ok = refuse_writable_disks(*qmp); !ok) return std::unexpected(ok.error());
  if (auto ok = refuse_foreign_writers(*qmp); !ok) return std::unexpected(ok.error());
  if (auto ok = complete_first(*qmp, options, stop); !ok) return std::unexpected(ok.error());
  Descriptor descriptor;
  if (auto ok = describe_parent(*qmp, descriptor); !ok) return std::unexpected(ok.error());
  const std::string shim = variable_of(qmp->pid(), "SF_SHIM_SOCKET");  // of its preload library
  if (shim.empty()) return freeze_by_snapshot(*qmp, options, std::move(descriptor));
  auto memory = memory_in_place(*qmp, shim);
  if (memory) return freeze_by_shim(*qmp, std::move(*memory), options, std::move(descriptor));
  if (memory.error().errnum == EBUSY)
    return std::unexpected(memory.error());  // QEMU could not either
  auto parent = freeze_by_snapshot(*qmp, options, std::move(descriptor));
  if (!parent) return std::unexpected(both(memory.error(), parent.error()));
  parent->why_no_shim = memory.error().what;
  return parent;
}

}  // namespace snowfabric
