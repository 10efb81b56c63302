// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "memtap-dpdk/guest_listener.hpp"
#include "memtap-dpdk/uffd_guest.hpp"
#include "tests/unit/guest_peer.hpp"

/// A real kernel, a real userfaultfd; this process is memtap, and guest too unless a test forks.
namespace snowfabric::testing {

using testing::connect_to;
using testing::count_open_fds;
using ::testing::HasSubstr;
using testing::send_with_fds;
using testing::TempDir;
using testing::UffdMemory;

inline constexpr std::size_t kPages = 64;
inline constexpr ImageGeometry kImage{.image_id = 1, .nb_pages = kPages, .epoch = 1};
inline constexpr int kWaitMs = 5000;  // far more than anything here takes

inline std::vector<std::byte> bytes_of(std::uint64_t first, std::size_t nb_pages) {
  std::vector<std::byte> bytes(nb_pages * kPageSize);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(first + i / kPageSize + 1);
  return bytes;
}

inline std::string region_json(std::uint64_t base, std::uint64_t pages, std::uint64_t first) {
  return fmt::format(R"({{"base_host_virt_addr":{},"size":{},"offset":{},"page_size":4096}})", base,
                     pages * kPageSize, first * kPageSize);
}

inline bool readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, kWaitMs) == 1;
}

class UffdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const UniqueFd probe{static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK))};
    if (!probe) GTEST_SKIP() << "userfaultfd(2): " << std::strerror(errno);
    auto listener = GuestListener::create({.socket_path = dir_ / "sock",
                                           .presence_dir = dir_ / "presence",
                                           .image = kImage,
                                           .max_guests = 2,
                                           .handshake_timeout = Nanos{100}});
    ASSERT_TRUE(listener.has_value()) << listener.error().what;
    listener_ = std::move(*listener);
  }

  /// Polls until `done`; epoll_fd() must say when.
  ListenerEvents poll_until(const std::function<bool(const ListenerEvents&)>& done) {
    for (;;) {
      ListenerEvents events = listener_->poll(Nanos{0});
      if (done(events)) return events;
      if (!readable(listener_->epoll_fd())) {
        ADD_FAILURE() << "nothing happened";
        return {};
      }
    }
  }
  ListenerEvents poll_until_rejected() {
    return poll_until([](const auto& e) { return !e.rejected.empty(); });
  }
  ListenerEvents poll_until_gone() {
    return poll_until([](const auto& e) { return !e.gone.empty(); });
  }

  /// Hands `memory` over as the guest would.
  UffdGuest* attach(const UffdMemory& memory, const std::string& json) {
    peer_ = connect_to(dir_ / "sock");
    EXPECT_TRUE(send_with_fds(peer_.get(), json, {memory.fd()}));
    const auto events =
        poll_until([](const auto& e) { return !e.attached.empty() || !e.rejected.empty(); });
    for (const Error& error : events.rejected) ADD_FAILURE() << error.what;
    return events.attached.empty() ? nullptr : static_cast<UffdGuest*>(events.attached[0]);
  }
  UffdGuest* attach(const UffdMemory& memory) {
    return attach(memory, "[" + region_json(memory.base(), kPages, 0) + "]");
  }

  /// Runs `body` as a vCPU while memtap polls; every page it reports goes to `on_fault`.
  static void run_vcpus(ProcessGuest& guest, const std::vector<std::function<void()>>& bodies,
                        const std::function<void(Gfn)>& on_fault) {
    std::atomic<std::size_t> running{bodies.size()};
    std::vector<std::thread> vcpus;
    for (const auto& body : bodies)
      vcpus.emplace_back([&] {
        body();
        running.fetch_sub(1);
      });
    while (running.load() > 0) {
      std::array<Gfn, 8> faults;
      const std::size_t nb_faults = guest.poll_faults(faults);
      for (std::size_t i = 0; i < nb_faults; ++i) on_fault(faults[i]);
      std::this_thread::yield();
    }
    for (auto& vcpu : vcpus) vcpu.join();
  }
  static void install_one(ProcessGuest& guest, Gfn page) {
    Install verdict = Install::kAgain;
    while (verdict == Install::kAgain) verdict = guest.install(page, bytes_of(page.value, 1));
    EXPECT_EQ(verdict, Install::kDone);
  }
  static bool holds(const UffdMemory& memory, std::size_t at, std::uint64_t gfn) {
    return std::ranges::equal(std::span{memory.page(at), kPageSize}, bytes_of(gfn, 1));
  }
  static bool zero(const UffdMemory& memory, std::size_t at) {
    return std::ranges::all_of(std::span{memory.page(at), kPageSize},
                               [](std::byte b) { return b == std::byte{0}; });
  }

  TempDir dir_;
  std::unique_ptr<GuestListener> listener_;
  UniqueFd peer_;
};

}  // namespace snowfabric::testing
