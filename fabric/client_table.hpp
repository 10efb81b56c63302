// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "fabric/base/mac.hpp"
#include "fabric/base/time.hpp"
#include "fabric/flow_control.hpp"
#include "fabric/token_bucket.hpp"
#include "fabric/wire.hpp"

namespace snowfabric {

/// One member of the group as the server knows it.
struct Client {
  std::uint64_t id = 0;
  MacAddr mac{};
  Nanos last_heard = kNever;
  wire::ReportBody last_report{};
  bool reported = false;     ///< last_report is filled
  bool takes_pairs = false;  ///< PAGE frames of two pages
  Nanos joined = kNever;
  /// Sequenced frames by all its reports, and the totals of the last of them.
  double frames_received = 0, frames_missed = 0;
  std::uint32_t last_received = 0, last_missed = 0;
  FlowEstimate flow;
  double recent_demand = 0;  ///< pages wanted, decaying: the weight in the group's rate
  TokenBucket::Totals sent_at_report{}, pushed_at_report{};  ///< of the two buckets at last_report
  Nanos srtt{0}, rttvar{0};                                  ///< as the client measured
  std::uint64_t end_game_mark = 0;
};

/// The members, dense, found by id. Capacity is fixed; an index stays valid until erase().
class ClientTable {
 public:
  using Index = std::uint16_t;
  static constexpr Index kNone = 0xffff;

  explicit ClientTable(std::size_t capacity) : capacity_{std::min<std::size_t>(capacity, kNone)} {
    by_id_.reserve(capacity_);
    clients_.reserve(capacity_);
  }

  [[nodiscard]] std::size_t size() const noexcept { return clients_.size(); }
  [[nodiscard]] bool full() const noexcept { return clients_.size() == capacity_; }
  [[nodiscard]] Client& operator[](Index i) noexcept { return clients_[i]; }
  [[nodiscard]] bool valid(Index i) const noexcept { return i < clients_.size(); }
  [[nodiscard]] auto begin() noexcept { return clients_.begin(); }
  [[nodiscard]] auto end() noexcept { return clients_.end(); }

  [[nodiscard]] Index find(std::uint64_t id) const noexcept {
    const auto entry = std::ranges::lower_bound(by_id_, id, {}, &Entry::id);
    return entry == by_id_.end() || entry->id != id ? kNone : entry->index;
  }
  /// @pre not full, and no member has this id
  Index insert(const Client& client) noexcept {
    const auto index = static_cast<Index>(clients_.size());
    by_id_.insert(entry_of(client), {client.id, index});  // within the capacity: no allocation
    clients_.push_back(client);
    return index;
  }
  /// The last member takes the index of the erased one: an index kept elsewhere may then name
  /// another member, which costs that member one unasked frame.
  void erase(Index i) noexcept {
    entry_of(clients_.back())->index = i;
    by_id_.erase(entry_of(clients_[i]));
    clients_[i] = clients_.back();
    clients_.pop_back();
  }

 private:
  struct Entry {
    std::uint64_t id;
    Index index;
  };
  /// Where its entry is, or belongs.
  [[nodiscard]] std::vector<Entry>::iterator entry_of(const Client& client) noexcept {
    return std::ranges::lower_bound(by_id_, client.id, {}, &Entry::id);
  }

  std::size_t capacity_;
  std::vector<Entry> by_id_;  // ascending: each request is a search, a join or leave is rare
  std::vector<Client> clients_;
};

}  // namespace snowfabric
