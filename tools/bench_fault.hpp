// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "fabric/base/result.hpp"
#include "fabric/eth_port.hpp"
#include "fabric/idle.hpp"
#include "memserver-dpdk/image.hpp"
#include "pmd-config/port.hpp"

/// The parts of a fault through the fabric, each alone: a REQUEST there and a page back over a
/// port, and a page put in place by userfaultfd. What is measured here decides nothing, and looks
/// for work as memserver and memtap do.
namespace snowfabric::bench {

/// Answers each REQUEST with the first page that it names.
class Responder {
 public:
  Responder(const Image& image, const Port& port);
  void run(const std::atomic<bool>& stop, const IdleConfig& idle) noexcept;

 private:
  unsigned turn() noexcept;
  void answer(const rte_mbuf& request) noexcept;

  const Image& image_;
  const Port& port_;
  EthPort queue_;
  TxTail<> tail_;
  GatherBuffer gather_;
};

/// How long each of some events took, in the order of time.
struct Latencies {
  std::vector<double> us;
  std::uint64_t nb_lost = 0;  ///< frames, or their answers: asked again, and not among the times
};

/// Asks a Responder for one page after the other.
/// @return ETIMEDOUT: no answer at all; EBADMSG: a page was not the image's; EINTR: `stop`
[[nodiscard]] Result<Latencies> round_trips(const Image& image, const Port& port,
                                            const MacAddr& responder,
                                            std::span<const std::uint32_t> pages,
                                            const IdleConfig& idle, const std::atomic<bool>& stop);

/// A thread touches one page after the other, and the caller puts each in place when the
/// userfaultfd says so: from the touch to when it goes on.
/// @return EBADMSG: the pages are not the image's; else as MissingMemory::make
[[nodiscard]] Result<Latencies> local_faults(const Image& image,
                                             std::span<const std::uint32_t> pages,
                                             const IdleConfig& idle);

}  // namespace snowfabric::bench
