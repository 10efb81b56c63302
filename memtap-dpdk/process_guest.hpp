// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/presence_file.hpp"

namespace snowfabric {

/// What guests have in common that are processes of this host: who they are, how they end, which
/// pages they have.
class ProcessGuest : public GuestAdapter {
 public:
  [[nodiscard]] bool waits(Gfn page) const noexcept override { return reported(page); }
  bool kill() noexcept override;
  [[nodiscard]] bool gone() const noexcept override { return gone_; }
  [[nodiscard]] std::string_view trouble() const noexcept override { return trouble_; }
  [[nodiscard]] const GuestCounters& counters() const noexcept override { return counters_; }
  [[nodiscard]] const Presence& presence() const noexcept override { return presence_; }

  /// Whether the guest waits, instead of reading zeros, if memtap leaves before its memory is
  /// complete.
  [[nodiscard]] virtual bool survives_memtap() const noexcept = 0;

  /// Whether a hang-up of socket() is the guest's end. Firecracker closes its own as soon as the
  /// handshake is sent.
  [[nodiscard]] virtual bool ends_with_socket() const noexcept = 0;

  /// Whether these pages, all in one region, come to the process by its userfaultfd.
  [[nodiscard]] virtual bool maps(PageRange) const noexcept { return false; }

  /// Pages that it neither has nor has claimed. Walks the whole bitmap.
  [[nodiscard]] std::size_t nb_missing() const noexcept {
    return presence_.count(PageState::kAbsent);
  }
  /// Lets go of a guest that has all its memory, which is then gone(). One that ends by itself
  /// does so soon.
  virtual void release() noexcept {}

  /// Readable when poll_faults() has something to do.
  [[nodiscard]] virtual int fault_fd() const noexcept = 0;

  [[nodiscard]] std::uint32_t id() const noexcept { return id_; }
  [[nodiscard]] pid_t pid() const noexcept { return peer_.pid; }
  [[nodiscard]] const std::string& presence_path() const noexcept { return file_.path(); }
  /// To wait on; they stay the guest's.
  [[nodiscard]] int socket() const noexcept { return peer_.socket.get(); }
  [[nodiscard]] int pidfd() const noexcept { return peer_.pidfd.get(); }
  /// The process ended, or the channel to it.
  void mark_gone() noexcept { gone_ = true; }

 protected:
  ProcessGuest(std::uint32_t id, Peer peer, PresenceFile presence);

  void set_trouble(std::string_view why) noexcept;

  [[nodiscard]] bool reported(Gfn page) const noexcept {
    return (reported_[page.value / 64] >> (page.value % 64) & 1U) != 0;
  }
  void set_reported(Gfn page) noexcept {
    reported_[page.value / 64] |= std::uint64_t{1} << (page.value % 64);
  }
  /// Of the pages from `first` up to `end`, whole words at a time: a balloon gives back gigabytes.
  void clear_reported(std::uint64_t first, std::uint64_t end) noexcept {
    for (; first < end && first % 64 != 0; ++first) clear_reported(Gfn{first});
    for (; end - first >= 64 && first < end; first += 64) reported_[first / 64] = 0;
    for (; first < end; ++first) clear_reported(Gfn{first});
  }
  void clear_reported(Gfn page) noexcept {
    reported_[page.value / 64] &= ~(std::uint64_t{1} << (page.value % 64));
  }

  GuestCounters counters_;
  Presence presence_;
  bool gone_ = false;

 private:
  std::uint32_t id_;
  Peer peer_;
  PresenceFile file_;
  std::vector<std::uint64_t> reported_;  ///< one bit a page: a vCPU waits and the engine knows
  std::string_view trouble_;
};

}  // namespace snowfabric
