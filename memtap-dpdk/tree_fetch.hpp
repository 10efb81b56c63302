// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <atomic>

#include "fabric/base/result.hpp"
#include "fabric/client_engine.hpp"
#include "fabric/hash_tree.hpp"
#include "fabric/seal.hpp"
#include "memtap-dpdk/options.hpp"
#include "pmd-config/app.hpp"

namespace snowfabric {

/// Fetches the image's hash tree, all of it, and checks it. Runs on the calling thread until then.
/// @param config  of the engine that will fetch the image
/// @param stop    set by a signal
/// @pre image.root
/// @return ECANCELED: stopped; EBADMSG: what the memserver serves is the tree of no such image;
///         ENOMEM; or as ServerWatch::look
[[nodiscard]] Result<HashTree> fetch_hash_tree(const TapOptions& options, const TapImage& image,
                                               ClientConfig config, const Datapath& datapath,
                                               Seal* seal, const std::atomic<bool>& stop);

}  // namespace snowfabric
