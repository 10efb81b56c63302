// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fabric/wire.hpp"
#include "library/carrier.hpp"

namespace snowfabric::testing {

/// Members of a network in memory: what one sends lies in the others' queues at once.
class FakeNet {
 public:
  using Bytes = std::vector<std::byte>;
  struct Sent {
    MacAddr src, dst;
    Bytes payload;
  };

  /// @return whether the frame is to be lost
  std::function<bool(const Sent&)> loses = [](const Sent&) { return false; };
  /// Called before a client looks for frames: lets the server work.
  std::function<void()> before_client_receives = [] {};
  std::size_t nb_per_flush = std::numeric_limits<std::size_t>::max();  ///< that a link takes
  std::vector<Sent> sent;

  /// Delivers as a switch does; the broadcast address reaches servers, the group clients.
  void send(Sent frame);
  void add(const MacAddr& address, bool is_server, std::deque<Sent>* queue) {
    members_.push_back({address, is_server, queue});
  }
  void remove(const std::deque<Sent>* queue) {
    std::erase_if(members_, [&](const Member& member) { return member.queue == queue; });
  }

 private:
  struct Member {
    MacAddr address;
    bool is_server;
    std::deque<Sent>* queue;
  };
  std::vector<Member> members_;
};

inline void FakeNet::send(Sent frame) {
  sent.push_back(frame);
  if (loses(frame)) return;
  for (const Member& member : members_) {
    const bool is_to_all = frame.dst.is_multicast() && frame.src != member.address &&
                           member.is_server == (frame.dst == kBroadcast);
    if (is_to_all || frame.dst == member.address) member.queue->push_back(frame);
  }
}

class FakeCarrier final : public Carrier {
 public:
  /// @param number  of its address; 0 is a server
  FakeCarrier(FakeNet& net, std::uint8_t number, std::uint16_t mtu_bytes = 9000)
      : net_{net},
        is_server_{number == 0},
        mtu_bytes_{mtu_bytes},
        address_{{2, 0, 0, 0, 0, number}} {
    net_.add(address_, is_server_, &queue_);
  }
  ~FakeCarrier() override { net_.remove(&queue_); }

  std::span<const Received> receive() noexcept override {
    if (!is_server_) net_.before_client_receives();
    nb_ = 0;
    for (; nb_ < kBurst && !queue_.empty(); ++nb_, queue_.pop_front()) {
      frames_[nb_] = std::move(queue_.front());
      received_[nb_] = {.src = frames_[nb_].src,
                        .payload = frames_[nb_].payload,
                        .wire_bytes = frames_[nb_].payload.size() + sizeof(wire::EthHdr)};
    }
    return std::span{received_}.first(nb_);
  }
  std::span<std::byte> room() noexcept override {
    return queued_.size() < 2 * kBurst ? std::span<std::byte>{buffer_} : std::span<std::byte>{};
  }
  void push(std::size_t nb_bytes,
            std::span<const std::span<const std::byte>> tail) noexcept override {
    wire::EthHdr eth;
    std::memcpy(&eth, buffer_.data(), sizeof eth);
    FakeNet::Bytes payload(buffer_.begin() + sizeof eth,
                           buffer_.begin() + static_cast<std::ptrdiff_t>(nb_bytes));
    for (const auto& part : tail) payload.insert(payload.end(), part.begin(), part.end());
    queued_.push_back({address_, eth.dst, std::move(payload)});
  }
  std::size_t flush() noexcept override {
    const std::size_t nb_sent = std::min(queued_.size(), net_.nb_per_flush);
    for (std::size_t i = 0; i < nb_sent; ++i, queued_.pop_front())
      net_.send(std::move(queued_.front()));
    return nb_sent;
  }
  [[nodiscard]] bool has_queued() const noexcept override { return !queued_.empty(); }
  [[nodiscard]] int wait_fd() const noexcept override { return -1; }
  [[nodiscard]] MacAddr address() const noexcept override { return address_; }
  [[nodiscard]] std::uint16_t mtu_bytes() const noexcept override { return mtu_bytes_; }
  [[nodiscard]] std::size_t overhead_bytes() const noexcept override { return 0; }
  [[nodiscard]] std::uint64_t nb_failed() const noexcept override { return 0; }
  [[nodiscard]] std::uint64_t tx_bytes() const noexcept override { return 0; }

 private:
  FakeNet& net_;
  bool is_server_;
  std::uint16_t mtu_bytes_;
  MacAddr address_;
  std::deque<FakeNet::Sent> queue_, queued_;  // to receive, to send
  std::array<FakeNet::Sent, kBurst> frames_;
  std::array<Received, kBurst> received_;
  std::size_t nb_ = 0;
  std::array<std::byte, wire::kMaxFrameBytes> buffer_{};
};

}  // namespace snowfabric::testing
