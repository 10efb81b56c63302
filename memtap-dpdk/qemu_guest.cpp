// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/qemu_guest.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <sys/socket.h>

namespace snowfabric {
namespace {

constexpr std::size_t kMaxQueuedBytes = std::size_t{1} << 20U;  // then installs are put off
constexpr std::size_t kMaxLooked = 512;  // pages asked for that are looked at in one turn

}  // namespace

Result<QemuSeed> QemuSeed::from(const Descriptor& descriptor) {
  auto state = qemu::state_of(descriptor);
  if (!state) return std::unexpected(state.error());
  auto preamble = qemu::postcopy_preamble(*state);
  if (!preamble) return std::unexpected(preamble.error());
  return QemuSeed{std::move(*state), std::move(*preamble)};
}

QemuGuest::QemuGuest(std::uint32_t id, QemuAttachment attachment, PresenceFile presence,
                     const QemuSeed& seed)
    : ProcessGuest{id, std::move(attachment.peer), std::move(presence)},
      seed_{seed},
      requester_{std::move(attachment.requester)},
      writer_{seed.state.blocks},
      return_path_{seed.state.blocks},
      out_{attachment.recover ? qemu::ask_received(seed.state) : seed.preamble},
      nb_missing_{presence_.nb_pages()},
      recovering_{attachment.recover} {
  out_.reserve(out_.size() + kMaxQueuedBytes);
  flush();
}

// --- from QEMU --------------------------------------------------------------------------------

std::size_t QemuGuest::poll_faults(std::span<Gfn> out) noexcept {
  if (gone_) return 0;
  flush();
  if (recovering_) recover();
  if (recovering_) return 0;
  if (asked_.nb_pages == 0 && in_rest_.empty()) receive();
  const std::size_t most = std::min(out.size(), kMaxAsked - nb_asked_);
  std::size_t nb_faults = 0;
  Gfn page;
  for (std::size_t i = 0; i < kMaxLooked && nb_faults < most && next_asked(page); ++i)
    if (on_fault(page)) out[nb_faults++] = page;
  flush();
  return nb_faults;
}

/// The next page QEMU asks for, of what was received: one look at the socket a turn, or a QEMU that
/// repeats itself would have the poll loop to itself.
bool QemuGuest::next_asked(Gfn& page) noexcept {
  while (asked_.nb_pages == 0) {
    if (gone_ || in_rest_.empty()) return false;
    const auto message = next_message();
    if (message && message->kind == qemu::Message::Kind::kPages) asked_ = message->pages;
  }
  page = asked_.first;
  ++asked_.first.value;
  --asked_.nb_pages;
  return true;
}

/// The message that ends in what was received. @return nullopt: none does, or QEMU is given up
std::optional<qemu::Message> QemuGuest::next_message() noexcept {
  auto message = return_path_.take(in_rest_);
  if (message) return *message;
  give_up("what QEMU answers is not the migration protocol");
  return std::nullopt;
}

void QemuGuest::give_up(std::string_view why) noexcept {
  set_trouble(why);
  mark_gone();
}

/// @return whether something came
bool QemuGuest::receive() noexcept {
  const ssize_t n = recv(socket(), in_.data(), in_.size(), MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (n <= 0) {
    mark_gone();  // complete, dead, or paused by its own decision
    return false;
  }
  in_rest_ = std::span{in_}.first(static_cast<std::size_t>(n));
  return true;
}

/// @return whether the page is to be fetched
bool QemuGuest::on_fault(Gfn page) noexcept {
  if (!presence_.absent(page)) {
    counters_.faults_raced.add(1);  // on its way
    return false;
  }
  if (reported(page)) {
    counters_.faults_repeated.add(1);
    return false;
  }
  set_reported(page);
  ++nb_asked_;
  counters_.faults.add(1);
  return true;
}

// --- recovery ---------------------------------------------------------------------------------

/// Takes in a piece of what QEMU has; the next comes with the next call.
void QemuGuest::recover() noexcept {
  if (!receive()) return;
  while (recovering_ && !gone_ && !in_rest_.empty())
    if (const auto message = next_message()) on_recovering(*message);
}

/// Requests are not looked at: QEMU repeats them after the resume.
void QemuGuest::on_recovering(const qemu::Message& message) noexcept {
  using Kind = qemu::Message::Kind;
  if (message.kind != Kind::kReceived && message.kind != Kind::kReceivedEnd) return;
  const RamBlock& block = seed_.state.blocks[nb_blocks_];
  const std::uint64_t first = message.pages.first.value;
  if (first < block.first_page || first - block.first_page >= block.nb_pages)
    return give_up("QEMU tells what it has in another order than it was asked");
  if (message.kind == Kind::kReceived) return on_received(message);
  if (++nb_blocks_ == seed_.state.blocks.size()) resume();
}

void QemuGuest::on_received(const qemu::Message& message) noexcept {
  for (std::uint32_t i = 0; i < message.pages.nb_pages; ++i) {
    const Gfn page{message.pages.first.value + i};
    if ((message.value >> i & 1U) == 0 || !presence_.claim(page, PageState::kClaimedByMemtap))
      continue;
    presence_.mark_present(page);
    --nb_missing_;
  }
}

void QemuGuest::resume() noexcept {
  recovering_ = false;
  queue(qemu::postcopy_resume(seed_.state));
  end_if_complete();
}

// --- into QEMU --------------------------------------------------------------------------------

Install QemuGuest::install(Gfn first, std::span<const std::byte> pages) noexcept {
  return fill({first, static_cast<std::uint32_t>(pages.size() / kPageSize)}, pages.data());
}

Install QemuGuest::install_zeros(PageRange pages) noexcept { return fill(pages, nullptr); }

/// @param bytes  of the pages, or nullptr for zeros
Install QemuGuest::fill(PageRange pages, const std::byte* bytes) noexcept {
  if (gone_) return Install::kGone;
  if (recovering_) {  // nobody waits yet: it comes again when QEMU asks for it
    counters_.eagain.add(1);
    return Install::kAgain;
  }
  const std::uint64_t begin = pages.first.value;
  const std::uint64_t end = std::min<std::uint64_t>(begin + pages.nb_pages, presence_.nb_pages());
  for (std::uint64_t at = begin; at < end; ++at) {
    if (out_.size() - sent_ >= kMaxQueuedBytes) flush();
    if (out_.size() - sent_ >= kMaxQueuedBytes) {
      counters_.eagain.add(1);
      return gone_ ? Install::kGone : Install::kAgain;
    }
    send_page(Gfn{at}, bytes == nullptr ? nullptr : bytes + (at - begin) * kPageSize);
  }
  flush();
  return gone_ ? Install::kGone : Install::kDone;
}

/// Once and never again: a page that comes twice makes QEMU give the migration up.
void QemuGuest::send_page(Gfn page, const std::byte* bytes) noexcept {
  if (!presence_.claim(page, PageState::kClaimedByMemtap)) {
    counters_.skipped_pages.add(1);
    return;
  }
  const bool known = writer_.append(
      out_, page, bytes == nullptr ? std::span<const std::byte>{} : std::span{bytes, kPageSize});
  if (!known) counters_.range_gone_pages.add(1);  // the blocks are the image: does not happen
  presence_.mark_present(page);
  if (reported(page)) --nb_asked_;
  clear_reported(page);
  (bytes == nullptr ? counters_.zero_pages : counters_.installed_pages).add(1);
  --nb_missing_;
  end_if_complete();
}

void QemuGuest::end_if_complete() noexcept {
  if (nb_missing_ == 0) queue(qemu::postcopy_end(seed_.state));
}

void QemuGuest::queue(std::span<const std::byte> bytes) noexcept {
  out_.insert(out_.end(), bytes.begin(), bytes.end());
}

void QemuGuest::flush() noexcept {
  while (sent_ < out_.size() && !gone_) {
    const ssize_t n =
        send(socket(), out_.data() + sent_, out_.size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) {
      mark_gone();
      break;
    }
    counters_.install_calls.add(1);
    sent_ += static_cast<std::size_t>(n);
  }
  if (sent_ < out_.size() && sent_ < kMaxQueuedBytes) return;  // moving the rest up is not free
  out_.erase(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(sent_));
  sent_ = 0;
}

FailMeans QemuGuest::fail(Gfn page) noexcept {
  if (gone_) return FailMeans::kGone;
  if (!presence_.absent(page)) return FailMeans::kNotNeeded;
  ::shutdown(socket(), SHUT_RDWR);  // QEMU then pauses the VM and can take up again later
  mark_gone();
  counters_.pauses.add(1);
  return FailMeans::kPaused;
}

}  // namespace snowfabric
