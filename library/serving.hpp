// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "fabric/base/result.hpp"
#include "fabric/idle.hpp"
#include "fabric/server_engine.hpp"
#include "fabric/stats.hpp"
#include "library/carrier.hpp"
#include "library/page_source.hpp"

namespace snowfabric {

/// A server of the library: the engine between pages and a carrier. One thread runs it.
class Serving {
 public:
  /// @param config  without what the carrier knows: MTU and overhead
  Serving(PageSource pages, std::unique_ptr<Carrier> carrier, ServerConfig config);

  /// Until `stop`, which it takes back; then says BYE. @return the error of a page that could not
  /// be read
  [[nodiscard]] Result<void> run(std::atomic<bool>& stop);
  /// One turn of the loop. @return what there was to do
  [[nodiscard]] unsigned turn(Nanos now);

  [[nodiscard]] const ImageView& image() const noexcept { return engine_.image(); }
  [[nodiscard]] const ServerStats& stats() const noexcept { return stats_; }
  [[nodiscard]] const DropCounters& drops() const noexcept { return drops_; }
  [[nodiscard]] const Carrier& carrier() const noexcept { return *carrier_; }

 private:
  unsigned receive(Nanos now) noexcept;
  unsigned send(Nanos now);
  void push(const ServerTx& tx);
  [[nodiscard]] Nanos deadline(Nanos now) const noexcept;
  [[nodiscard]] std::size_t put_page(Gfn page, const ServerTx& tx, std::span<std::byte> room);

  const PageSource pages_;
  std::unique_ptr<Carrier> carrier_;
  ServerStats stats_;
  DropCounters drops_;
  ServerEngine engine_;
  std::array<std::byte, kPageSize> page_{};  // read, of which fragments are taken
  std::optional<Gfn> read_page_;             // which it is
  std::array<std::span<const std::byte>, 2> tail_{};
  std::size_t nb_tail_ = 0;
  Result<void> read_{};
};

}  // namespace snowfabric
