// SPDX-License-Identifier: BSD-3-Clause
#include "tools/load_replay.hpp"

#include <algorithm>
#include <cerrno>
#include <random>

#include <fmt/format.h>

#include "descriptor/page_list.hpp"
#include "fabric/base/prng.hpp"
#include "tools/load_control.hpp"

namespace snowfabric::bench {
namespace {

constexpr std::uint32_t kRunPages = 8;  // neighbours that are touched together

/// Runs out of a part of the image, in random order.
/// @param nb_touched  multiples of kRunPages, as all are
void append_runs(LoadTrace& trace, std::uint32_t first, std::uint32_t nb_pages,
                 std::uint32_t nb_touched, Prng& random) {
  std::vector<std::uint32_t> runs(nb_pages / kRunPages);
  for (std::uint32_t i = 0; i < runs.size(); ++i) runs[i] = first + i * kRunPages;
  std::ranges::shuffle(runs, std::mt19937_64{random.next()});
  for (std::uint32_t i = 0; i < nb_touched / kRunPages && i < runs.size(); ++i)
    for (std::uint32_t page = 0; page < kRunPages; ++page) trace.push_back(runs[i] + page);
}

}  // namespace

Result<std::vector<LoadTrace>> read_traces(std::span<const std::string> paths) {
  std::vector<LoadTrace> traces;
  for (const std::string& path : paths) {
    const auto ranges = read_page_list(path, kMaxLoadPages);
    if (!ranges) return std::unexpected(ranges.error());
    std::uint64_t nb_pages = 0;
    for (const PageRange& range : *ranges) nb_pages += range.nb_pages;
    if (nb_pages == 0) return fail(EINVAL, fmt::format("{} has no pages", path));
    if (nb_pages > kMaxLoadPages)
      return fail(EFBIG, fmt::format("{} has {} pages: at most {} are replayed", path, nb_pages,
                                     kMaxLoadPages));
    LoadTrace& trace = traces.emplace_back();
    for (const PageRange& range : *ranges)
      for (std::uint32_t i = 0; i < range.nb_pages; ++i)
        trace.push_back(static_cast<std::uint32_t>(range.first.value) + i);
  }
  return traces;
}

std::vector<LoadTrace> make_traces(std::uint32_t nb_traces, std::uint32_t nb_touched,
                                   std::uint32_t nb_pages, std::uint64_t seed) {
  Prng random{seed};
  const std::uint32_t half = std::max(nb_touched / 2 / kRunPages * kRunPages, kRunPages);
  std::vector<LoadTrace> traces(nb_traces);
  for (LoadTrace& trace : traces) {
    append_runs(trace, 0, half, half, random);  // all of what is in common
    append_runs(trace, half, nb_pages - half, half, random);
    // Both kinds mixed, run by run.
    std::vector<std::uint32_t> runs(trace.size() / kRunPages);
    for (std::uint32_t i = 0; i < runs.size(); ++i) runs[i] = i;
    std::ranges::shuffle(runs, std::mt19937_64{random.next()});
    LoadTrace mixed;
    mixed.reserve(trace.size());
    for (const std::uint32_t run : runs)
      mixed.insert(mixed.end(), trace.begin() + run * kRunPages,
                   trace.begin() + (run + 1) * kRunPages);
    trace = std::move(mixed);
  }
  return traces;
}

LoadReplay::LoadReplay(LoadMembers& members, std::span<const LoadTrace> traces,
                       std::uint32_t nb_pages, unsigned nb_vcpus)
    : members_{members}, guests_(members.all().size()), nb_vcpus_{nb_vcpus} {
  for (std::size_t i = 0; i < guests_.size(); ++i) {
    guests_[i].trace = traces[i % traces.size()];
    guests_[i].has.resize(nb_pages);
    guests_[i].waits.reserve(nb_vcpus);
  }
}

void LoadReplay::begin(Nanos now) {
  for (std::uint32_t member = 0; member < guests_.size(); ++member) touch(member, now);
}

/// Every vCPU that does not wait touches the next page, until all wait or the trace ends.
void LoadReplay::touch(std::uint32_t member, Nanos now) {
  Guest& guest = guests_[member];
  while (guest.waits.size() < nb_vcpus_ && guest.next < guest.trace.size()) {
    const std::uint32_t page = guest.trace[guest.next];
    if (!guest.has[page]) {  // another vCPU may wait for it, too
      if (!members_.all()[member]->engine.want(Gfn{page}, wire::Priority::kDemand, now)) return;
      guest.waits.push_back({page, now});
    }
    ++guest.next;
    ++nb_touched_;
  }
  if (guest.waits.empty() && guest.next == guest.trace.size()) {
    ++nb_done_;
    ++guest.next;  // so that it is done once
  }
}

void LoadReplay::on_page(const wire::Frame& frame, const MacAddr& dst, Nanos now) {
  bool fits = true;
  if (dst.is_multicast()) {
    for (std::uint32_t member = 0; member < guests_.size(); ++member)
      fits = take(member, frame, now) && fits;
  } else if (const auto member = members_.member_of(dst)) {
    fits = take(*member, frame, now);
  }
  if (!fits) ++nb_bad_crc_;
}

/// As memtap does: a page that nobody asked for is kept if it is not there yet. vCPUs go on when
/// all of the frame is there, or they would wait for its second page.
/// @return false: a checksum was wrong
bool LoadReplay::take(std::uint32_t member, wire::Frame frame, Nanos now) {
  Guest& guest = guests_[member];
  ClientEngine& engine = members_.all()[member]->engine;
  bool fits = true, goes_on = false;
  do {
    const std::uint64_t page = frame.page.gfn.host();
    if (page >= guest.has.size()) continue;
    if (guest.has[page]) {
      engine.on_duplicate(frame);
      continue;
    }
    // Whose checksum was looked at once for all: a thousand members would look at nothing else.
    if (frame.page.nb_fragments == 1 && !engine.in_flight(Gfn{page})) {
      guest.has[page] = true;
      continue;
    }
    wire::Drop drop = wire::Drop::kNone;
    if (engine.take_page(frame, now, drop)) {
      guest.has[page] = true;
      goes_on = end_waits(guest, page, now) || goes_on;
    }
    fits = fits && drop == wire::Drop::kNone;
  } while (frame.next_page());
  if (goes_on) touch(member, now);
  return fits;
}

/// @return whether a vCPU waited for it
bool LoadReplay::end_waits(Guest& guest, std::uint64_t page, Nanos now) {
  return std::erase_if(guest.waits, [&](const Wait& wait) {
           if (wait.page != page) return false;
           waits_.add(now - wait.since);
           longest_wait_ = std::max(longest_wait_, now - wait.since);
           ++nb_waits_;
           return true;
         }) != 0;
}

}  // namespace snowfabric::bench
