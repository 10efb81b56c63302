// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <string>
#include <vector>

#include "tools/bench_install.hpp"
#include "tools/bench_ring.hpp"
#include "tools/bench_serve.hpp"

namespace snowfabric::bench {

[[nodiscard]] double median(std::vector<double> values);

/// The result as JSON: `rate` and `limit` (medians, pages/s), `ratio` of the two, and all runs.
[[nodiscard]] std::string ring_json(const RingOptions& options, std::uint64_t nb_pages,
                                    std::size_t nb_fragments, const RingResult& result);
/// The same for people.
[[nodiscard]] std::string ring_table(const RingOptions& options, std::uint64_t nb_pages,
                                     std::size_t nb_fragments, const RingResult& result);

/// As ring_json(), of the case that is the worst by its ratio; `cases` has all.
[[nodiscard]] std::string serve_json(const ServeOptions& options,
                                     const std::vector<ServeResult>& results);
/// As serve_json(); `copying` is the rate of the system calls alone.
[[nodiscard]] std::string install_json(const InstallOptions& options,
                                       const std::vector<InstallResult>& results);
[[nodiscard]] std::string install_table(const InstallOptions& options,
                                        const std::vector<InstallResult>& results);
[[nodiscard]] std::string serve_table(const ServeOptions& options,
                                      const std::vector<ServeResult>& results);

}  // namespace snowfabric::bench
