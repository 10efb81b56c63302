// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/frozen_domain.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "fabric/base/parse_number.hpp"
#include "xen-glue/copier.hpp"
#include "xen-glue/guest_bitmap.hpp"
#include "xen-glue/page_tables.hpp"

namespace snowfabric::xen {
namespace {

using Clock = std::chrono::steady_clock;

/// libxl puts RAM above 4 GiB from here on; Source: HVM_BELOW_4G_RAM_END of xen/hvm/e820.h.
constexpr std::uint64_t kMaxRamPages = 0xf0000;
/// From a vCPU's GS.base on: all of Linux' per-CPU data lies within, the vcpu_info wherever in it.
constexpr std::uint64_t kPerCpuPages = 64;
constexpr auto kLookEvery = std::chrono::milliseconds{1};

/// Rounds while the guest runs. More of them gain little: it writes as fast as before.
constexpr int kMaxRounds = 5;
/// So few are copied in the pause at once.
constexpr std::size_t kFewPages = 256;

std::chrono::microseconds since(Clock::time_point began) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - began);
}

/// RAM as it was at the start: what a balloon gave back since is counted too.
Result<std::uint64_t> ram_pages(const Domain& domain) {
  constexpr const char* kNode = "memory/static-max";
  const auto text = domain.store_read(kNode);
  if (!text) return std::unexpected(text.error());
  const std::uint64_t kib = parse_number(*text, 10).value_or(0);
  if (kib < kPageSize / 1024)
    return fail(EINVAL, fmt::format("{} of {} = {}", kNode, to_string(domain.id()), *text));
  const std::uint64_t nb_pages = kib / (kPageSize / 1024);
  if (nb_pages > kMaxRamPages)
    return fail(ENOTSUP, fmt::format("{} has {} KiB, more than {}", to_string(domain.id()), kib,
                                     kMaxRamPages * kPageSize / 1024));
  return nb_pages;
}

/// An HVM guest's device model has state of its own, and PV guests cannot be paged.
Result<void> check_kind(const Domain& domain) {
  const std::string path = fmt::format("/libxl/{}/type", static_cast<std::uint16_t>(domain.id()));
  std::string kind;
  if (const int errnum = domain.calls().store_read(path, kind)) return fail(errnum, "read " + path);
  if (kind == "pvh") return {};
  return fail(ENOTSUP, fmt::format("{} is of type {}: only pvh can be forked",
                                   to_string(domain.id()), kind));
}

/// Of the vCPUs that are up.
Result<std::vector<CpuRecord>> read_cpus(const Domain& domain, std::uint32_t nb_vcpus) {
  std::vector<CpuRecord> cpus;
  for (std::uint32_t vcpu = 0; vcpu < nb_vcpus; ++vcpu) {
    CpuRecord cpu;
    const int errnum = domain.calls().cpu(domain.id(), vcpu, cpu);
    if (errnum == ENODATA) continue;
    if (const auto ok = domain.checked(errnum, "read a CPU record"); !ok)
      return std::unexpected(ok.error());
    if (!is_64_bit(cpu))
      return fail(ENOTSUP, fmt::format("vCPU {} of {} is in 32-bit mode: only 64-bit guests can "
                                       "be forked",
                                       vcpu, to_string(domain.id())));
    cpus.push_back(cpu);
  }
  return cpus;
}

/// What a clone has not got yet cannot be told from what its guest gave back.
Result<void> check_guest(const Domain& domain) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  if (info->nb_paged_pages != 0)
    return fail(ENODATA, fmt::format("{} lacks {} of its pages: it can be forked once it has all",
                                     to_string(domain.id()), info->nb_paged_pages));
  if (const auto cpus = read_cpus(domain, info->nb_vcpus); !cpus)
    return std::unexpected(cpus.error());
  return {};
}

constexpr std::string_view kRequest = "control/shutdown";

/// @return whether the guest had taken the request, which is no longer there then
bool take_back_request(const Domain& domain) {
  const auto request = domain.store_read(kRequest);
  if (request && *request != "suspend") return true;  // another is not ours to take back
  // A domain that is gone refuses.
  [[maybe_unused]] const auto taken_back = domain.store_write(kRequest, "");
  return false;
}

/// @return whether it runs now, or is gone; false: it does not stand
bool resume_suspended(const Domain& domain) noexcept {
  DomainInfo info;
  if (domain.calls().info(domain.id(), info) != 0) return true;
  return info.suspended && domain.calls().resume(domain.id()) == 0;
}

/// Takes back the request to suspend. A guest that had taken it may suspend yet: Linux needs less
/// than a second from there. It may also have taken it just when we did.
void end_suspend(const Domain& domain) {
  const auto last_look =
      take_back_request(domain) ? std::chrono::milliseconds{5000} : std::chrono::milliseconds{500};
  for (const auto deadline = Clock::now() + last_look; !resume_suspended(domain);) {
    if (Clock::now() >= deadline) return;
    std::this_thread::sleep_for(kLookEvery);
  }
}

/// A domain that is told to suspend; it runs on with the end of this object.
class Suspended {
 public:
  explicit Suspended(Domain domain) noexcept : domain_{domain} {}
  Suspended(const Suspended&) = delete;
  Suspended& operator=(const Suspended&) = delete;
  ~Suspended() {
    if (asked_) end_suspend(domain_);
  }
  [[nodiscard]] Result<void> wait(const FreezeOptions& options) {
    if (auto ok = domain_.store_write(kRequest, "suspend"); !ok) return ok;
    asked_ = true;
    for (const auto deadline = Clock::now() + options.suspend_timeout; Clock::now() < deadline;) {
      if (options.stop != nullptr && *options.stop) return fail(ECANCELED, "a freeze");
      const auto info = domain_.info();
      if (!info) return std::unexpected(info.error());
      if (info->suspended) return {};
      std::this_thread::sleep_for(kLookEvery);
    }
    return fail(ETIMEDOUT, fmt::format("{} was asked to suspend", to_string(domain_.id())));
  }
  [[nodiscard]] Result<void> resume() {
    const auto ok = domain_.resume();
    asked_ = !ok.has_value();
    return ok;
  }

 private:
  Domain domain_;
  bool asked_ = false;
};

/// The vCPUs' per-CPU data, and the tables by which Xen finds it: it writes there whenever it stops
/// a vCPU, and asks for a page that is missing each time anew. Where a table has been emptied since
/// it was copied, an older one is read: a page too many does no harm.
std::vector<Gfn> eager_pages(const ReadRam& read, std::uint64_t nb_pages,
                             std::span<const CpuRecord> cpus) {
  std::vector<Gfn> eager;
  const auto add = [&](Gfn page) {
    if (page.value < nb_pages) eager.push_back(page);
  };
  const ReadRam note_tables = [&](std::uint64_t at, std::span<std::byte> out) {
    add(Gfn{at / kPageSize});
    return read(at, out);
  };
  for (const CpuRecord& cpu : cpus)
    for (std::uint64_t i = 0; i < kPerCpuPages; ++i)
      if (const auto page = page_at(note_tables, cpu, cpu.gs_base + i * kPageSize)) add(*page);
  std::ranges::sort(eager);
  const auto repeated = std::ranges::unique(eager);
  eager.erase(repeated.begin(), repeated.end());
  return eager;
}

/// Of a domain that stands. @param pages  those that were read: page tables lie in few
ReadRam reader_of(const Domain& domain, std::map<std::uint64_t, ForeignPages>& pages) {
  return [domain, &pages](std::uint64_t at, std::span<std::byte> out) {
    const std::uint64_t number = at / kPageSize;
    auto found = pages.find(number);
    if (found == pages.end()) {
      auto page = domain.map_page(Gfn{number}, Access::kRead);
      if (!page) return false;
      found = pages.emplace(number, std::move(*page)).first;
    }
    std::memcpy(out.data(), found->second.bytes() + at % kPageSize, out.size());
    return true;
  };
}

ReadRam reader_of(const FrozenDomain& frozen) {
  return [fd = frozen.memory.get()](std::uint64_t at, std::span<std::byte> out) {
    const ssize_t nb_bytes = pread(fd, out.data(), out.size(), static_cast<off_t>(at));
    return nb_bytes == static_cast<ssize_t>(out.size());
  };
}

Result<void> read_state(const Domain& domain, DomainState& out) {
  auto context = domain.context();
  if (!context) return std::unexpected(context.error());
  const auto tsc = domain.tsc();
  if (!tsc) return std::unexpected(tsc.error());
  const auto target = domain.store_read("memory/target");
  if (!target) return std::unexpected(target.error());
  out.context = std::move(*context);
  out.tsc = *tsc;
  out.target_kib = parse_number(*target, 10).value_or(0);
  return {};
}

/// Is told when the freeze is over that it was asked for.
class GuestAgent {
 public:
  explicit GuestAgent(Domain domain) noexcept : domain_{domain} {}
  GuestAgent(const GuestAgent&) = delete;
  GuestAgent& operator=(const GuestAgent&) = delete;
  ~GuestAgent() {
    if (asked_) end_question(domain_);
  }
  [[nodiscard]] Result<PageRange> bitmap(std::uint64_t nb_pages) const {
    return announced_bitmap(domain_, nb_pages);
  }
  [[nodiscard]] Result<FreeWords> ask(PageRange bitmap, std::uint64_t nb_pages,
                                      const FreezeOptions& options) {
    asked_ = true;
    return ask_free_pages(domain_, bitmap, nb_pages, options.free_pages_timeout, options.stop);
  }

 private:
  Domain domain_;
  bool asked_ = false;
};

/// Between begin() and the first copy. A guest that cannot say is copied whole.
Result<void> skip_free_pages(GuestAgent& agent, Copier& copier, FrozenDomain& frozen,
                             const FreezeOptions& options) {
  const auto bitmap = agent.bitmap(frozen.nb_pages);
  if (!bitmap) {
    frozen.why_none_avoided =
        bitmap.error().errnum == ENOENT ? "no sf-xen-agent runs in the guest" : bitmap.error().what;
    return {};
  }
  const auto free = agent.ask(*bitmap, frozen.nb_pages, options);
  if (!free) {
    if (free.error().errnum == ECANCELED) return std::unexpected(free.error());
    frozen.why_none_avoided =
        fmt::format("{}: {}", free.error().what, std::strerror(free.error().errnum));
    return {};
  }
  copier.skip(*free);
  frozen.state.bitmap = *bitmap;
  return {};
}

/// While the guest runs: until it has written little since the last round, or no less than before.
Result<void> freeze_while_it_runs(GuestAgent& agent, Copier& copier, FrozenDomain& frozen,
                                  const FreezeOptions& options) {
  if (auto ok = copier.begin(); !ok) return ok;
  if (auto ok = skip_free_pages(agent, copier, frozen, options); !ok) return ok;
  if (options.in_place) return {};
  const auto began = Clock::now();
  if (auto ok = copier.copy(options); !ok) return ok;
  frozen.copy = since(began);
  FreezeOptions quiet = options;
  quiet.progress = {};
  for (std::size_t round = 1, last = frozen.nb_pages; round < kMaxRounds; ++round) {
    const auto nb_dirty = copier.look();
    if (!nb_dirty) return std::unexpected(nb_dirty.error());
    if (auto ok = copier.copy(quiet); !ok) return ok;
    if (*nb_dirty < kFewPages || *nb_dirty > last / 2) break;
    last = *nb_dirty;
  }
  return {};
}

Result<void> copy_rest(Copier& copier, FrozenDomain& frozen) {
  const auto nb_dirty = copier.look();
  if (!nb_dirty) return std::unexpected(nb_dirty.error());
  frozen.nb_pages_in_pause = *nb_dirty;
  if (auto ok = copier.copy(FreezeOptions{}); !ok) return ok;
  frozen.zeros = copier.zeros();
  std::tie(frozen.nb_free_pages, frozen.nb_avoided_pages) = copier.nb_free_and_avoided();
  return {};
}

/// Eager pages are copied at once: Xen's questions for them would fill the paging ring.
Result<void> keep_in_place(const Domain& domain, Copier& copier, std::span<const CpuRecord> cpus,
                           FrozenDomain& frozen, const InPlace& in_place) {
  if (const auto nb_dirty = copier.look(); !nb_dirty) return std::unexpected(nb_dirty.error());
  {
    std::map<std::uint64_t, ForeignPages> tables;
    frozen.state.eager = eager_pages(reader_of(domain, tables), frozen.nb_pages, cpus);
  }
  const FreeWords free = copier.still_free();
  std::tie(frozen.nb_free_pages, frozen.nb_avoided_pages) = copier.nb_free_and_still_free();
  copier.end();
  auto ram = NominatedRam::take(Domain{*in_place.calls, domain.id()}, frozen.nb_pages,
                                {.free = free, .busy = frozen.state.eager, .enabled = [&] {
                                   in_place.begins(frozen.nb_pages);
                                 }});
  if (!ram) return std::unexpected(ram.error());
  frozen.zeros = (*ram)->left_out();
  frozen.nb_pages_in_pause = (*ram)->nb_copies();
  return in_place.serve(std::move(*ram));
}

/// @return the vCPUs that are up
Result<std::vector<CpuRecord>> read_all_state(const Domain& domain, FrozenDomain& frozen) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  frozen.state.nb_vcpus = info->nb_vcpus;
  if (const auto ok = read_state(domain, frozen.state); !ok) return std::unexpected(ok.error());
  return read_cpus(domain, info->nb_vcpus);
}

/// @param copier  ends with the pause: Xen has nothing more to note
Result<void> freeze_in_pause(const Domain& domain, Copier& copier, FrozenDomain& frozen,
                             const FreezeOptions& options) {
  const auto asked = Clock::now();
  Suspended suspended{domain};
  if (auto ok = suspended.wait(options); !ok) return ok;
  frozen.suspend = since(asked);
  frozen.since = Clock::now();
  const auto cpus = read_all_state(domain, frozen);
  if (!cpus) return std::unexpected(cpus.error());
  const auto kept = options.in_place
                        ? keep_in_place(domain, copier, *cpus, frozen, *options.in_place)
                        : copy_rest(copier, frozen);
  if (!kept) return kept;
  const auto resumed = suspended.resume();
  frozen.pause = since(frozen.since);
  if (!options.in_place)
    frozen.state.eager = eager_pages(reader_of(frozen), frozen.nb_pages, *cpus);
  return resumed;
}

}  // namespace

void give_back(const Domain& domain) {
  constexpr int kMostPauses = 4;  // of ours there are two at most
  DomainInfo info;
  for (int i = 0; i < kMostPauses; ++i)
    if (domain.calls().info(domain.id(), info) == 0 && info.paused)
      domain.calls().unpause(domain.id());
  end_suspend(domain);
  domain.calls().log_dirty(domain.id(), false);
  end_question(domain);
}

/// Its memory first: a domain that stands at a page cannot answer the rest.
Result<void> give_back_in_place(const Domain& domain, std::uint64_t nb_pages,
                                const ForeignPages* ring_page) {
  auto done = NominatedRam::give_back_all(domain, nb_pages, ring_page);
  if (done) give_back(domain);
  return done;
}

Result<FrozenDomain> FrozenDomain::take(Domain domain, const FreezeOptions& options) {
  if (const auto ok = check_kind(domain); !ok) return std::unexpected(ok.error());
  if (const auto ok = check_guest(domain); !ok) return std::unexpected(ok.error());
  const auto nb_pages = ram_pages(domain);
  if (!nb_pages) return std::unexpected(nb_pages.error());
  auto memory = make_copy(*nb_pages);
  if (!memory) return std::unexpected(memory.error());
  FrozenDomain frozen;
  frozen.memory = std::move(*memory);
  frozen.nb_pages = *nb_pages;
  GuestAgent agent{domain};
  {
    Copier copier{domain, frozen.memory.get(), *nb_pages};
    if (const auto ok = freeze_while_it_runs(agent, copier, frozen, options); !ok)
      return std::unexpected(ok.error());
    if (const auto ok = freeze_in_pause(domain, copier, frozen, options); !ok)
      return std::unexpected(ok.error());
  }
  if (const auto ok = seal_copy(frozen.memory.get()); !ok) return std::unexpected(ok.error());
  return frozen;
}

}  // namespace snowfabric::xen
