// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/qemu_loader.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/socket.h>

namespace snowfabric {
namespace {

PageRange range_of(std::uint64_t first, std::uint64_t end) {
  return {Gfn{first}, static_cast<std::uint32_t>(end - first)};
}

}  // namespace

const RamBlock& ram_of(const qemu::State& state) noexcept {
  return *std::ranges::max_element(state.blocks, {}, &RamBlock::nb_pages);
}

QemuLoader::QemuLoader(std::uint32_t id, QemuAttachment attachment, PresenceFile presence,
                       const QemuSeed& seed)
    : ProcessGuest{id, std::move(attachment.peer), std::move(presence)},
      seed_{seed},
      requester_{std::move(attachment.requester)},
      pages_((presence_.nb_pages() - left_out().nb_pages) * kPageSize),
      nb_missing_{presence_.nb_pages() - left_out().nb_pages} {
  presence_.discard(range_of(left_out().first_page, left_out().first_page + left_out().nb_pages));
  if (nb_missing_ == 0) compose();
}

std::size_t QemuLoader::poll_faults(std::span<Gfn> out) noexcept {
  if (gone_) return 0;
  std::array<std::byte, 64> end;
  if (recv(socket(), end.data(), end.size(), MSG_DONTWAIT) == 0) mark_gone();  // it has read all
  std::size_t nb_faults = 0;
  const RamBlock& ram = left_out();
  for (; next_.value < presence_.nb_pages() && nb_faults < out.size(); ++next_.value) {
    // Millions of pages, and the other guests of the lcore wait.
    if (next_.value == ram.first_page) next_.value += ram.nb_pages;
    if (next_.value >= presence_.nb_pages()) break;
    if (!presence_.absent(next_)) continue;
    set_reported(next_);
    counters_.faults.add(1);
    out[nb_faults++] = next_;
  }
  flush();
  return nb_faults;
}

Install QemuLoader::install(Gfn first, std::span<const std::byte> pages) noexcept {
  return fill(range_of(first.value, first.value + pages.size() / kPageSize), pages.data());
}

Install QemuLoader::install_zeros(PageRange pages) noexcept { return fill(pages, nullptr); }

std::span<std::byte, kPageSize> QemuLoader::room_of(Gfn page) noexcept {
  const bool behind = page.value >= left_out().first_page;
  const std::uint64_t index = page.value - (behind ? left_out().nb_pages : 0);
  return std::span<std::byte, kPageSize>{pages_.data() + index * kPageSize, kPageSize};
}

/// @param bytes  of the pages, or nullptr for zeros
Install QemuLoader::fill(PageRange pages, const std::byte* bytes) noexcept {
  if (gone_) return Install::kGone;
  const std::uint64_t begin = pages.first.value;
  const std::uint64_t end = std::min<std::uint64_t>(begin + pages.nb_pages, presence_.nb_pages());
  for (std::uint64_t at = begin; at < end; ++at) {
    if (!presence_.claim(Gfn{at}, PageState::kClaimedByMemtap)) {
      counters_.skipped_pages.add(1);
      continue;
    }
    if (bytes != nullptr)
      std::memcpy(room_of(Gfn{at}).data(), bytes + (at - begin) * kPageSize, kPageSize);
    presence_.mark_present(Gfn{at});
    clear_reported(Gfn{at});
    (bytes == nullptr ? counters_.zero_pages : counters_.installed_pages).add(1);
    if (--nb_missing_ == 0) compose();
  }
  return Install::kDone;
}

void QemuLoader::compose() noexcept {
  const auto index = static_cast<std::size_t>(&left_out() - seed_.state.blocks.data());
  auto stream = qemu::precopy_stream(
      seed_.state, index, [this](Gfn page) { return std::span<const std::byte>{room_of(page)}; });
  if (!stream) {
    set_trouble("no stream can be made of the descriptor's device state");
    return;
  }
  out_ = std::move(*stream);
  pages_ = {};
  flush();
}

void QemuLoader::flush() noexcept {
  while (sent_ < out_.size() && !gone_) {
    const ssize_t n =
        send(socket(), out_.data() + sent_, out_.size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return mark_gone();
    counters_.install_calls.add(1);
    sent_ += static_cast<std::size_t>(n);
    if (sent_ == out_.size()) ::shutdown(socket(), SHUT_WR);  // QEMU looks for more until the end
  }
}

/// It has not begun to run: without its ROMs it never will.
FailMeans QemuLoader::fail(Gfn page) noexcept {
  if (gone_) return FailMeans::kGone;
  if (!presence_.absent(page)) return FailMeans::kNotNeeded;
  return kill() ? FailMeans::kKilled : gone_ ? FailMeans::kGone : FailMeans::kRefused;
}

}  // namespace snowfabric
