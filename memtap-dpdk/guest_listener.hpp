// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/base/time.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "memtap-dpdk/presence_file.hpp"
#include "memtap-dpdk/process_guest.hpp"

namespace snowfabric {

class KeptImage;
struct QemuSeed;
struct XenSeed;

struct ListenerConfig {
  std::string socket_path;  ///< guests connect here; unlinked at close
  std::string
      presence_dir;  ///< made with mode 0700 if missing; one file a guest, clone-ID.presence
  ImageGeometry image;
  const QemuSeed* qemu =
      nullptr;                   ///< for clones that are QEMUs; borrowed; without it none can come
  const XenSeed* xen = nullptr;  ///< for clones that are Xen domains; likewise
  const KeptImage* kept = nullptr;  ///< that guests may map; borrowed
  std::vector<uid_t> guest_uids{};  ///< who may connect beside our user and root
  std::size_t max_guests = 64;      ///< without the loaders of QEMUs
  Nanos handshake_timeout = std::chrono::seconds{5};
};

/// What one poll() saw.
struct ListenerEvents {
  std::vector<ProcessGuest*> attached;  ///< owned by the listener until gone
  std::vector<CompletionRequest> to_complete;
  std::vector<std::unique_ptr<ProcessGuest>>
      gone;                        ///< to read the last counters of, then to destroy
  std::vector<Error> rejected;     ///< connections that did not become a guest
  std::uint64_t nb_of_others = 0;  ///< of these, of users who may not connect
};

/// Accepts guests and owns them while they live. One thread for everything, adapters included;
/// nothing blocks, and the work of one poll() is bounded.
class GuestListener {
 public:
  /// Makes the socket, for its owner alone (mode 0600) unless guest_uids names others. A socket
  /// file nobody listens on is replaced.
  /// @return EADDRINUSE: a live process listens there; ENAMETOOLONG; or what the call reported
  static Result<std::unique_ptr<GuestListener>> create(ListenerConfig config);

  GuestListener(const GuestListener&) = delete;
  GuestListener& operator=(const GuestListener&) = delete;
  ~GuestListener();

  /// Readable when poll() has something to do or some guest's poll_faults() has.
  [[nodiscard]] int epoll_fd() const noexcept { return all_.get(); }

  /// Takes in connections, messages and deaths.
  /// @param now  only for the time-out of handshakes
  [[nodiscard]] ListenerEvents poll(Nanos now);

  [[nodiscard]] const std::vector<std::unique_ptr<ProcessGuest>>& guests() const noexcept {
    return guests_;
  }

 private:
  struct Pending {
    PendingHandshake handshake;
    Nanos deadline;
  };

  explicit GuestListener(ListenerConfig config) : config_{std::move(config)} {}
  Result<void> listen();
  Result<void> make_epolls();
  void on_end_of(ProcessGuest& guest, int fd);
  void accept_some(Nanos now, ListenerEvents& events);
  void advance(int fd, ListenerEvents& events);
  void expire(Nanos now, ListenerEvents& events);
  Result<ProcessGuest*> attach(PendingHandshake handshake);
  Result<std::unique_ptr<ProcessGuest>> make_guest(PendingHandshake handshake);
  Result<std::unique_ptr<ProcessGuest>> make_qemu_guest(PendingHandshake handshake);
  Result<std::unique_ptr<ProcessGuest>> make_xen_guest(PendingHandshake handshake);
  Result<PresenceFile> make_presence();
  [[nodiscard]] bool admits(uid_t uid) const noexcept;
  [[nodiscard]] Result<void> check_room() const;
  [[nodiscard]] Result<void> check_image(const std::string& name) const;
  [[nodiscard]] Result<void> check_ram(pid_t pid) const;
  Result<void> watch(const ProcessGuest& guest);
  void collect_gone(ListenerEvents& events);
  [[nodiscard]] ProcessGuest* guest_of(int fd) const noexcept;

  ListenerConfig config_;
  UniqueFd socket_;
  UniqueFd control_;  ///< epoll: listener, handshakes, guests' sockets and pidfds
  UniqueFd all_;      ///< epoll: control_ and what the guests' faults come by
  bool bound_ = false, made_dir_ = false;
  std::uint32_t next_id_ = 0;
  std::vector<Pending> pending_;
  std::vector<std::unique_ptr<ProcessGuest>> guests_;
};

}  // namespace snowfabric
