// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/guest_listener.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "fabric/base/unix_socket.hpp"
#include "memtap-dpdk/qemu_guest.hpp"
#include "memtap-dpdk/qemu_loader.hpp"
#include "memtap-dpdk/uffd_guest.hpp"
#include "memtap-dpdk/xen_guest.hpp"

namespace snowfabric {
namespace {

constexpr int kBacklog = 64;
constexpr int kEventsPerPoll = 32;
constexpr int kAcceptsPerPoll = 8;
constexpr std::size_t kMaxPending = 64;

/// A socket file outlives its process; only connecting tells whether somebody still listens.
Result<void> remove_stale(const UnixAddress& address, const std::string& path) {
  struct stat st{};
  if (lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return {};
    return fail(errno, fmt::format("stat {}", path));
  }
  if (!S_ISSOCK(st.st_mode))
    return fail(EEXIST, fmt::format("{} exists and is not a socket; remove it yourself", path));
  const UniqueFd probe{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!probe) return fail(errno, "socket AF_UNIX");
  if (connect(probe.get(), address.get(), UnixAddress::size()) == 0 || errno == EAGAIN)
    return fail(EADDRINUSE, fmt::format("a process listens on {} already; stop it, or choose "
                                        "another socket",
                                        path));
  if (errno != ECONNREFUSED) return fail(errno, fmt::format("connect {}", path));
  if (unlink(path.c_str()) != 0) return fail(errno, fmt::format("unlink stale {}", path));
  return {};
}

/// @return whether it was not there before
Result<bool> make_dir(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0) return true;
  if (errno == EEXIST) return false;
  return fail(errno, fmt::format("mkdir {}", path));
}

Result<void> add(int epoll_fd, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0) return {};
  return fail(errno, fmt::format("epoll_ctl add fd {}", fd));
}

/// Closing does not remove a description that another process holds too, so this is explicit.
void remove(int epoll_fd, int fd) { epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, nullptr); }

/// A guest whose memory cannot be had must be stopped, and not every kernel can poison a page.
Result<void> check_rights(const Peer& peer) {
  if (syscall(SYS_pidfd_send_signal, peer.pidfd.get(), 0, nullptr, 0) == 0) return {};
  if (errno == ESRCH) return fail(errno, fmt::format("process {} ended meanwhile", peer.pid));
  return fail(errno, fmt::format("process {} may not be signalled; run memtap as its user or as "
                                 "root",
                                 peer.pid));
}

}  // namespace

Result<std::unique_ptr<GuestListener>> GuestListener::create(ListenerConfig config) {
  std::unique_ptr<GuestListener> listener{new GuestListener{std::move(config)}};
  const auto made = make_dir(listener->config_.presence_dir);
  if (!made) return std::unexpected(made.error());
  listener->made_dir_ = *made;
  PresenceFile::clean(listener->config_.presence_dir);
  if (auto ok = listener->listen(); !ok) return std::unexpected(ok.error());
  if (auto ok = listener->make_epolls(); !ok) return std::unexpected(ok.error());
  return listener;
}

Result<void> GuestListener::listen() {
  const std::string& path = config_.socket_path;
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  if (auto ok = remove_stale(*address, path); !ok) return ok;
  socket_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!socket_) return fail(errno, "socket AF_UNIX");
  // On a socket the mode given here is the mode bind() makes the file with: no moment open to all.
  if (fchmod(socket_.get(), 0600) != 0) return fail(errno, "fchmod of a unix socket");
  if (bind(socket_.get(), address->get(), UnixAddress::size()) != 0)
    return fail(errno, fmt::format("bind {}", path));
  bound_ = true;
  // The umask has no say in it; admits() has.
  if (!config_.guest_uids.empty() && chmod(path.c_str(), 0666) != 0)
    return fail(errno, fmt::format("chmod {}", path));
  if (::listen(socket_.get(), kBacklog) != 0) return fail(errno, fmt::format("listen {}", path));
  return {};
}

Result<void> GuestListener::make_epolls() {
  control_ = UniqueFd{epoll_create1(EPOLL_CLOEXEC)};
  all_ = UniqueFd{epoll_create1(EPOLL_CLOEXEC)};
  if (!control_ || !all_) return fail(errno, "epoll_create1");
  if (auto ok = add(control_.get(), socket_.get(), EPOLLIN); !ok) return ok;
  return add(all_.get(), control_.get(), EPOLLIN);
}

GuestListener::~GuestListener() {
  if (bound_) unlink(config_.socket_path.c_str());
  guests_.clear();                                     // their presence files go first
  if (made_dir_) rmdir(config_.presence_dir.c_str());  // stays if something else lies in it
}

ListenerEvents GuestListener::poll(Nanos now) {
  ListenerEvents events;
  std::array<epoll_event, kEventsPerPoll> ready;
  const int nb_ready = epoll_wait(control_.get(), ready.data(), kEventsPerPoll, 0);
  for (int i = 0; i < nb_ready; ++i) {
    const int fd = ready[static_cast<std::size_t>(i)].data.fd;
    if (fd == socket_.get())
      accept_some(now, events);
    else if (ProcessGuest* guest = guest_of(fd); guest != nullptr)
      on_end_of(*guest, fd);
    else
      advance(fd, events);
  }
  expire(now, events);
  collect_gone(events);
  return events;
}

void GuestListener::on_end_of(ProcessGuest& guest, int fd) {
  if (fd == guest.socket() && !guest.ends_with_socket())
    remove(control_.get(), fd);  // it has said all; the pidfd tells its end
  else
    guest.mark_gone();
}

void GuestListener::accept_some(Nanos now, ListenerEvents& events) {
  for (int i = 0; i < kAcceptsPerPoll; ++i) {
    UniqueFd fd{accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!fd) {
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        events.rejected.push_back({errno, fmt::format("accept on {}", config_.socket_path)});
      return;
    }
    if (pending_.size() >= kMaxPending) {
      events.rejected.push_back({EBUSY, fmt::format("a connection was turned away: {} handshakes "
                                                    "are under way",
                                                    pending_.size())});
      continue;
    }
    auto handshake = PendingHandshake::begin(std::move(fd));
    if (handshake && !admits(handshake->uid())) {
      ++events.nb_of_others;
      events.rejected.push_back(
          {EACCES,
           fmt::format("process {} of user {} may not connect to {}: --guest-uid {} lets it",
                       handshake->pid(), handshake->uid(), config_.socket_path, handshake->uid())});
      continue;
    }
    Result<void> added;
    if (handshake) added = add(control_.get(), handshake->fd(), EPOLLIN);
    if (!handshake || !added) {
      events.rejected.push_back(handshake ? added.error() : handshake.error());
      continue;
    }
    pending_.push_back({std::move(*handshake), now + config_.handshake_timeout});
  }
}

/// Whatever the modes of the socket and its folder are.
bool GuestListener::admits(uid_t uid) const noexcept {
  const auto& named = config_.guest_uids;
  return uid == 0 || uid == geteuid() || std::ranges::find(named, uid) != named.end();
}

/// Takes what arrived on a handshake's socket; it leaves pending_ as a guest or as an error.
void GuestListener::advance(int fd, ListenerEvents& events) {
  const auto pending =
      std::ranges::find_if(pending_, [fd](const Pending& p) { return p.handshake.fd() == fd; });
  if (pending == pending_.end()) return;  // of a guest that left earlier in this poll
  const auto whole = pending->handshake.receive();
  if (whole && !*whole) return;
  remove(control_.get(), fd);
  PendingHandshake handshake = std::move(pending->handshake);
  pending_.erase(pending);
  if (!whole) {
    events.rejected.push_back(whole.error());
    return;
  }
  if (handshake.handover() == Handover::kCompletion) {
    auto request = std::move(handshake).finish_completion();
    if (request)
      events.to_complete.push_back(std::move(*request));
    else
      events.rejected.push_back(request.error());
  } else if (auto guest = attach(std::move(handshake)); guest) {
    events.attached.push_back(*guest);
  } else {
    events.rejected.push_back(guest.error());
  }
}

void GuestListener::expire(Nanos now, ListenerEvents& events) {
  std::erase_if(pending_, [&](const Pending& p) {
    if (now < p.deadline) return false;
    remove(control_.get(), p.handshake.fd());
    events.rejected.push_back(
        {ETIMEDOUT,
         fmt::format("handshake: process {} sent no whole message in time", p.handshake.pid())});
    return true;
  });
}

Result<ProcessGuest*> GuestListener::attach(PendingHandshake handshake) {
  const Handover handover = handshake.handover();
  if (handover != Handover::kPrecopy)
    if (auto ok = check_room(); !ok) return std::unexpected(ok.error());
  auto guest = handover == Handover::kRegions ? make_guest(std::move(handshake))
               : handover == Handover::kXen   ? make_xen_guest(std::move(handshake))
                                              : make_qemu_guest(std::move(handshake));
  if (!guest) return std::unexpected(guest.error());
  if (auto ok = watch(**guest); !ok) return std::unexpected(ok.error());
  guests_.push_back(std::move(*guest));
  return guests_.back().get();
}

Result<std::unique_ptr<ProcessGuest>> GuestListener::make_guest(PendingHandshake handshake) {
  auto attachment = std::move(handshake).finish(config_.image.nb_pages * kPageSize);
  if (!attachment) return std::unexpected(attachment.error());
  if (const auto& mapped = attachment->mapped; mapped)
    if (auto ok = check_image(mapped->image); !ok) return std::unexpected(ok.error());
  if (auto ok = check_rights(attachment->peer); !ok) return std::unexpected(ok.error());
  auto presence = make_presence();
  if (!presence) return std::unexpected(presence.error());
  return std::make_unique<UffdGuest>(next_id_++, std::move(*attachment), std::move(*presence),
                                     config_.kept);
}

Result<std::unique_ptr<ProcessGuest>> GuestListener::make_qemu_guest(PendingHandshake handshake) {
  if (config_.qemu == nullptr)
    return fail(EINVAL,
                "a QEMU clone came, but there is no device state to start it from: give "
                "memtap the --descriptor of a QEMU parent");
  const bool is_loader = handshake.handover() == Handover::kPrecopy;
  auto attachment = std::move(handshake).finish_qemu();
  if (!attachment) return std::unexpected(attachment.error());
  if (const auto& image = attachment->image; image)
    if (auto ok = check_image(*image); !ok) return std::unexpected(ok.error());
  if (is_loader)
    if (auto ok = check_ram(attachment->peer.pid); !ok) return std::unexpected(ok.error());
  if (auto ok = check_rights(attachment->peer); !ok) return std::unexpected(ok.error());
  auto presence = make_presence();
  if (!presence) return std::unexpected(presence.error());
  if (is_loader)
    return std::make_unique<QemuLoader>(next_id_++, std::move(*attachment), std::move(*presence),
                                        *config_.qemu);
  return std::make_unique<QemuGuest>(next_id_++, std::move(*attachment), std::move(*presence),
                                     *config_.qemu);
}

Result<std::unique_ptr<ProcessGuest>> GuestListener::make_xen_guest(PendingHandshake handshake) {
  if (config_.xen == nullptr)
    return fail(EINVAL,
                "a Xen domain came, but this memtap serves no clones of one: give it the "
                "--descriptor of a Xen parent");
  auto attachment = std::move(handshake).finish_xen();
  if (!attachment) return std::unexpected(attachment.error());
  if (auto ok = check_image(attachment->image); !ok) return std::unexpected(ok.error());
  auto presence = make_presence();
  if (!presence) return std::unexpected(presence.error());
  auto guest = XenGuest::adopt(next_id_, std::move(*attachment), std::move(*presence),
                               *config_.xen->calls, config_.xen->pages);
  if (!guest) return std::unexpected(guest.error());
  ++next_id_;
  return std::move(*guest);
}

/// A loader is a part of its clone, which is there already, and leaves soon.
Result<void> GuestListener::check_room() const {
  const auto nb_clones = static_cast<std::size_t>(
      std::ranges::count_if(guests_, [](const auto& guest) { return !guest->is_loader(); }));
  if (nb_clones < config_.max_guests) return {};
  return fail(EBUSY, fmt::format("a guest was turned away: there are {} of at most {}", nb_clones,
                                 config_.max_guests));
}

/// A clone whose memtap died looks for the next at the same socket: that may serve another image.
Result<void> GuestListener::check_image(const std::string& name) const {
  const std::string ours = image_name(config_.image);
  if (name == ours) return {};
  return fail(EINVAL, fmt::format("a clone of image {} came, this memtap serves {}", name, ours));
}

/// Its RAM does not come with its state. Without its preload library it would run on zeros. One
/// loader a clone, for no other bound is on their number.
Result<void> GuestListener::check_ram(pid_t pid) const {
  const RamBlock& ram = ram_of(config_.qemu->state);
  const PageRange pages{Gfn{ram.first_page}, static_cast<std::uint32_t>(ram.nb_pages)};
  bool comes = false;
  for (const auto& guest : guests_) {
    if (guest->pid() != pid) continue;
    if (guest->is_loader()) return fail(EBUSY, fmt::format("QEMU {} is being loaded already", pid));
    comes |= guest->maps(pages);
  }
  if (comes) return {};
  return fail(EPROTO, fmt::format("QEMU {} asks for all but its RAM, and has not handed over a "
                                  "userfaultfd for {}; was it started with libsf-clone.so?",
                                  pid, ram.name));
}

Result<PresenceFile> GuestListener::make_presence() {
  return PresenceFile::create(fmt::format("{}/clone-{}.presence", config_.presence_dir, next_id_),
                              config_.image);
}

Result<void> GuestListener::watch(const ProcessGuest& guest) {
  // No EPOLLIN on the socket: only its hang-up, which is always reported, says something.
  if (auto ok = add(control_.get(), guest.socket(), 0); !ok) return ok;
  if (auto ok = add(control_.get(), guest.pidfd(), EPOLLIN); !ok) return ok;
  return add(all_.get(), guest.fault_fd(), EPOLLIN);
}

/// Also those whose install found them dead before their socket said so.
void GuestListener::collect_gone(ListenerEvents& events) {
  const auto first_gone =
      std::partition(guests_.begin(), guests_.end(),
                     [](const std::unique_ptr<ProcessGuest>& g) { return !g->gone(); });
  for (auto& guest : std::span{first_gone, guests_.end()}) {
    remove(control_.get(), guest->socket());
    remove(control_.get(), guest->pidfd());
    remove(all_.get(), guest->fault_fd());
    events.gone.push_back(std::move(guest));
  }
  guests_.erase(first_gone, guests_.end());
}

ProcessGuest* GuestListener::guest_of(int fd) const noexcept {
  const auto guest = std::ranges::find_if(
      guests_, [fd](const auto& g) { return g->socket() == fd || g->pidfd() == fd; });
  return guest == guests_.end() ? nullptr : guest->get();
}

}  // namespace snowfabric
