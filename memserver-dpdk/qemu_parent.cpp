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

#include "fabric/base/frame_number.hpp"
#include "memserver-dpdk/borrowed_parent.hpp"
#include "memserver-dpdk/clone_parent.hpp"
#include "memserver-dpdk/free_pages.hpp"
#include "memserver-dpdk/parent_checks.hpp"
#include "memserver-dpdk/process.hpp"
#include "memserver-dpdk/qmp.hpp"
#include "memserver-dpdk/stream_channel.hpp"

namespace snowfabric {
namespace {

using Json = Qmp::Json;
using Clock = std::chrono::steady_clock;

constexpr auto kVerdictTimeout = std::chrono::seconds{10};
// In the pause: a QEMU that stalls for so long does not leave its VM stopped. A background snapshot
// stops nothing, and may have to wait for the disk that the VM's memory was swapped to.
constexpr auto kStatePatience = std::chrono::seconds{10};
constexpr auto kSnapshotPatience = std::chrono::seconds{60};

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

/// Whether QEMU says nothing: then it may not answer either.
bool is_silence(const Error& error) {
  return error.errnum == ETIMEDOUT || error.errnum == ECANCELED;
}

/// Has QEMU send its state, and takes it. What we cannot take is said to nobody: a QEMU 7.2 whose
/// background snapshot is broken off hangs. One that falls silent is left to the guard.
Result<Migrated> migrate(Qmp& qmp, BorrowedParent& parent, std::uint64_t nb_live_pages,
                         std::optional<int> progress_fd, const std::atomic<bool>& stop) {
  if (auto ok = parent.send_state(); !ok) return std::unexpected(ok.error());
  const StreamChannel channel{parent.channel(),
                              nb_live_pages != 0 ? kStatePatience : kSnapshotPatience, stop};
  auto memory = FrozenMemory::take(channel, nb_live_pages, progress_fd);
  if (!memory && (is_silence(memory.error()) || !channel.hear_out()))
    return std::unexpected(memory.error());
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
                                        Descriptor descriptor, const std::atomic<bool>& stop) {
  auto qemu = BorrowedParent::borrow(qmp, "background-snapshot");
  if (!qemu) return std::unexpected(explained(qemu.error(), qmp.pid()));
  const auto began = Clock::now();
  const std::uint64_t asked_at_ns = wall_clock_ns();
  auto migrated = migrate(qmp, *qemu, 0, options.progress_fd, stop);
  if (!migrated) return std::unexpected(migrated.error());
  // It stops the VM when it has prepared its memory; not one that stands still already.
  descriptor.frozen_at_ns = std::max(asked_at_ns, qmp.stopped_at_ns());
  qemu->give_back();
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
                                    const QemuFreezeOptions& options, Descriptor descriptor,
                                    const std::atomic<bool>& stop) {
  const std::shared_ptr<CowMemory> live{std::move(memory)};
  auto qemu = BorrowedParent::borrow(qmp, "x-ignore-shared");
  if (!qemu) return std::unexpected(qemu.error());
  if (auto ok = live->arm(); !ok) return std::unexpected(ok.error());
  const auto free = ask_free_memory(qmp, options, *live);
  if (auto ok = qemu->stop(); !ok) return std::unexpected(ok.error());
  if (auto ok = live->freeze(); !ok) return std::unexpected(ok.error());
  descriptor.frozen_at_ns = wall_clock_ns();
  auto migrated = migrate(qmp, *qemu, live->nb_pages(), std::nullopt, stop);
  if (!migrated) return std::unexpected(migrated.error());
  const auto pause = qemu->resume();
  if (!pause) return std::unexpected(pause.error());
  qemu->give_back();
  auto parent = complete(std::move(migrated->memory), live, options, std::move(descriptor));
  if (auto avoided = avoidable(free, parent.memory.state(), *live); avoided)
    leave_out(std::move(*avoided), parent);
  else
    parent.why_none_avoided = avoided.error().what;
  live->leave_out(parent.zeros);
  parent.kind = FreezeKind::kShim;
  parent.since = qemu->since();
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
  if (shim.empty()) return freeze_by_snapshot(*qmp, options, std::move(descriptor), stop);
  auto memory = memory_in_place(*qmp, shim);
  if (memory) return freeze_by_shim(*qmp, std::move(*memory), options, std::move(descriptor), stop);
  if (memory.error().errnum == EBUSY)
    return std::unexpected(memory.error());  // QEMU could not either
  auto parent = freeze_by_snapshot(*qmp, options, std::move(descriptor), stop);
  if (!parent) return std::unexpected(both(memory.error(), parent.error()));
  parent->why_no_shim = memory.error().what;
  return parent;
}

}  // namespace snowfabric
