// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <poll.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>

#include "memtap-dpdk/guest_listener.hpp"
#include "memtap-dpdk/qemu_guest.hpp"
#include "tests/unit/guest_peer.hpp"
#include "tests/unit/qemu_sample.hpp"

namespace snowfabric::testing {

inline constexpr std::uint64_t kRamPages = 1020, kClonePages = 1024;  // 4 are a ROM
inline constexpr std::string_view kHandover = R"([{"adapter": "qemu-postcopy"}])";
inline constexpr std::string_view kRecovery =
    R"([{"adapter": "qemu-postcopy", "image": "0000000000000007-1", "recover": true}])";

/// With 1020 pages of RAM and a ROM of 4.
inline Descriptor parent() {
  qemu::State state;
  const std::string machine("\x07\0\0\0\x02pc", 7);
  const auto bytes = std::as_bytes(std::span{machine});
  state.config.assign(bytes.begin(), bytes.end());
  state.ram_section_id = 2;
  state.ram_version = 4;
  state.blocks = {{"pc.ram", 0, kRamPages, kRamPages * kPageSize},
                  {"pc.rom", kRamPages, 4, 4 * kPageSize}};
  state.devices = devices().vector();
  Descriptor descriptor;
  descriptor.image_id = 7;
  descriptor.spaces = {{0, kClonePages}};
  descriptor.blocks = state.blocks;
  descriptor.sections = qemu::to_sections(state);
  return descriptor;
}

inline std::vector<std::byte> page_of(std::uint64_t gfn) {
  return std::vector<std::byte>(kPageSize, static_cast<std::byte>(0x10 + gfn));
}

/// A QEMU whose migration channel is handed over; the test is QEMU.
struct QemuCloneTest : ::testing::Test {
  void begin(std::string_view handshake) {
    listen();
    hand_over(handshake);
  }

  void listen() {
    auto made = QemuSeed::from(parent());
    ASSERT_TRUE(made) << made.error().what;
    seed_ = std::move(*made);
    auto listener =
        GuestListener::create({.socket_path = dir_ / "sock",
                               .presence_dir = dir_ / "presence",
                               .image = {.image_id = 7, .nb_pages = kClonePages, .epoch = 1},
                               .qemu = &*seed_,
                               .max_guests = max_guests_});
    ASSERT_TRUE(listener) << listener.error().what;
    listener_ = std::move(*listener);
  }

  struct Sent {
    UniqueFd qemu, requester;
  };
  [[nodiscard]] Sent send_channel(std::string_view handshake) const {
    std::array<int, 2> ends{};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd channel{ends[1]};
    Sent sent{UniqueFd{ends[0]}, connect_to(dir_ / "sock")};
    EXPECT_TRUE(send_with_fds(sent.requester.get(), handshake, {channel.get()}));
    return sent;
  }
  void hand_over(std::string_view handshake) {
    auto [qemu, requester] = send_channel(handshake);
    qemu_ = std::move(qemu);
    requester_ = std::move(requester);
    for (int i = 0; i < 100 && guest_ == nullptr; ++i) poll_listener();
    ASSERT_NE(guest_, nullptr);
  }
  /// Hands over a QEMU that memtap does not take. @return why
  std::string refusal_of(std::string_view handshake) {
    const Sent sent = send_channel(handshake);
    for (int i = 0; i < 100; ++i) {
      pollfd ready{listener_->epoll_fd(), POLLIN, 0};
      ::poll(&ready, 1, 100);
      const ListenerEvents events = listener_->poll(Nanos{0});
      if (!events.attached.empty()) return "it is taken";
      if (!events.rejected.empty()) return events.rejected[0].what;
    }
    return "nothing happened";
  }

  void poll_listener() {
    pollfd ready{listener_->epoll_fd(), POLLIN, 0};
    ::poll(&ready, 1, 100);
    ListenerEvents events = listener_->poll(Nanos{0});
    for (const Error& error : events.rejected) ADD_FAILURE() << error.what;
    if (!events.attached.empty()) guest_ = events.attached[0];
    nb_gone_ += events.gone.size();
    on_events(events);
  }
  /// For tests that want more of them.
  virtual void on_events(ListenerEvents& /*events*/) {}

  std::vector<std::byte> hear(std::size_t nb_bytes) {
    std::vector<std::byte> heard(nb_bytes);
    std::size_t at = 0;
    while (at < nb_bytes) {
      pollfd ready{qemu_.get(), POLLIN, 0};
      if (::poll(&ready, 1, 1000) <= 0) break;
      const ssize_t n = recv(qemu_.get(), heard.data() + at, nb_bytes - at, 0);
      if (n <= 0) break;
      at += static_cast<std::size_t>(n);
    }
    heard.resize(at);
    return heard;
  }
  /// All that is there.
  std::vector<std::byte> drain() {
    std::vector<std::byte> all;
    while (!silent()) {
      const auto heard = hear(1);
      if (heard.empty()) break;
      std::vector<std::byte> more(1 << 16);
      const ssize_t n = recv(qemu_.get(), more.data(), more.size(), MSG_DONTWAIT);
      all.insert(all.end(), heard.begin(), heard.end());
      if (n > 0) all.insert(all.end(), more.begin(), more.begin() + n);
    }
    return all;
  }
  [[nodiscard]] bool silent() const {
    pollfd ready{qemu_.get(), POLLIN, 0};
    return ::poll(&ready, 1, 0) == 0;
  }
  std::vector<std::uint64_t> faults() {
    std::array<Gfn, 8> out;
    std::vector<std::uint64_t> pages;
    for (std::size_t n; (n = guest_->poll_faults(out)) != 0;)
      for (std::size_t i = 0; i < n; ++i) pages.push_back(out[i].value);
    return pages;
  }
  void say(const std::string& bytes) { ASSERT_TRUE(send_with_fds(qemu_.get(), bytes, {})); }

  std::size_t max_guests_ = 64;
  TempDir dir_;
  std::optional<QemuSeed> seed_;
  std::unique_ptr<GuestListener> listener_;
  UniqueFd requester_, qemu_;
  ProcessGuest* guest_ = nullptr;
  std::size_t nb_gone_ = 0;
};

}  // namespace snowfabric::testing
