// SPDX-License-Identifier: BSD-3-Clause
#include "memtap-dpdk/tree_fetch.hpp"

#include <cerrno>
#include <memory>
#include <new>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "memtap-dpdk/server_watch.hpp"
#include "memtap-dpdk/tree_guest.hpp"
#include "memtap-dpdk/worker.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kBufferPages = 64;
constexpr Nanos kRetryPause =
    std::chrono::milliseconds{10};  // between looks at nodes that do not fit

/// Called by the worker between turns.
class TreeFetch {
 public:
  TreeFetch(const TapOptions& options, const TapImage& image, ClientEngine& engine,
            ClientWorker& worker, const std::atomic<bool>& stop)
      : image_{image},
        give_up_{static_cast<std::int64_t>(options.give_up_s * 1e9)},
        root_{image.root.value_or(Hash{})},
        engine_{engine},
        worker_{worker},
        stop_{stop},
        server_{options, image, engine, "the hash tree of " + name_of(image)} {}

  void step(Nanos now) {
    if (stop_) return end(fail(ECANCELED, "stopped before the hash tree was complete"));
    if (auto ok = server_.look(false, now); !ok) return end(std::move(ok));
    if (engine_.state() != ClientState::kJoined) return;
    if (!host_ && !begin(now)) return;
    if (host_->completing(*guest_))
      watch_progress(now);
    else if (now >= retry_at_)
      check(now);
  }
  [[nodiscard]] const std::atomic<bool>& ended() const noexcept { return ended_; }
  Result<HashTree> take() {
    if (!verdict_) return std::unexpected(verdict_.error());
    return std::move(*tree_);
  }

 private:
  bool begin(Nanos now) {
    began_ = progress_at_ = now;
    try {
      if (auto tree = HashTree::with_room_for(engine_.nb_pages()))
        tree_ = std::make_unique<HashTree>(std::move(*tree));
      const std::uint64_t right = HashTree::nb_nodes_over(image_.nb_pages);
      if (!tree_ || (image_.nb_pages != 0 && engine_.nb_pages() != right)) {
        end(fail(EBADMSG, fmt::format("the memserver's hash tree of {} has {} nodes: it is that of "
                                      "no such image",
                                      name_of(image_), engine_.nb_pages())));
        return false;
      }
      guest_ = std::make_unique<TreeGuest>(*tree_);
      host_ = std::make_unique<Host>(engine_, stats_, 0, kBufferPages);
      host_->attach(*guest_);
      host_->complete(*guest_);
      worker_.serve(*host_, -1);
    } catch (const std::bad_alloc&) {
      end(fail(ENOMEM, fmt::format("{} nodes of a hash tree", engine_.nb_pages())));
      return false;
    }
    return true;
  }

  /// Nodes that nobody has are answered by ABSENT, for ever.
  void watch_progress(Nanos now) {
    const std::uint64_t nb_installed = guest_->counters().installed_pages.read();
    if (std::exchange(nb_installed_, nb_installed) != nb_installed) progress_at_ = now;
    if (now - progress_at_ >= give_up_)
      end(fail(EBADMSG,
               fmt::format("the hash tree of {} lacks some of its {} nodes, and none comes",
                           name_of(image_), engine_.nb_pages())));
  }

  /// All of it is there. Whoever sent nodes that do not fit may go on doing so, or the root is of
  /// another image: that looks the same.
  void check(Nanos now) {
    const std::size_t nb_bad = guest_->check(root_);
    if (nb_bad == 0) {
      spdlog::info("hash tree of {}: {} nodes fetched and checked in {:.1f} ms, {} once more",
                   name_of(image_), engine_.nb_pages(),
                   static_cast<double>(to_micros(now - began_)) / 1000, nb_refetched_);
      return end({});
    }
    if (misfit_since_ == kNever) misfit_since_ = now;
    if (now - misfit_since_ >= give_up_)
      return end(fail(EBADMSG,
                      fmt::format("{} nodes of the hash tree of {} do not fit its root, again and "
                                  "again: is the root that of this image? If it is, somebody "
                                  "sends wrong ones",
                                  nb_bad, name_of(image_))));
    nb_refetched_ += nb_bad;
    retry_at_ = now + kRetryPause;
    host_->complete(*guest_);
  }

  void end(Result<void> verdict) {
    verdict_ = std::move(verdict);
    ended_ = true;
  }

  const TapImage& image_;
  const Nanos give_up_;
  const Hash root_;
  ClientEngine& engine_;
  ClientWorker& worker_;
  const std::atomic<bool>& stop_;
  ServerWatch server_;
  HostStats stats_;
  std::unique_ptr<HashTree> tree_;
  std::unique_ptr<TreeGuest> guest_;
  std::unique_ptr<Host> host_;
  Nanos began_{0}, progress_at_{0}, retry_at_{0};
  Nanos misfit_since_ = kNever;
  std::uint64_t nb_installed_ = 0, nb_refetched_ = 0;
  Result<void> verdict_;
  std::atomic<bool> ended_{false};
};

}  // namespace

Result<HashTree> fetch_hash_tree(const TapOptions& options, const TapImage& image,
                                 ClientConfig config, const Datapath& datapath, Seal* seal,
                                 const std::atomic<bool>& stop) {
  config.client_id = random_id();
  config.space = kHashTreeSpace;
  config.max_pages = HashTree::nb_nodes_over(config.max_pages);
  ClientStats stats;
  ClientEngine engine{config, stats};
  ClientWorker worker{engine, datapath.port, options.rx_loss_percent / 100, options.seed, seal};
  TreeFetch fetch{options, image, engine, worker, stop};
  worker.run(fetch.ended(), datapath.profile.idle, [&fetch](Nanos now) { fetch.step(now); });
  return fetch.take();
}

}  // namespace snowfabric
