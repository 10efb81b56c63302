// SPDX-License-Identifier: BSD-3-Clause
// sf-xen-clone: starts a clone of a Xen domain from a descriptor, and keeps it: hands it to the
// memtap of its host, and to the next if that one dies; ends with the clone, and the clone with it.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>

#include "descriptor/descriptor.hpp"
#include "descriptor/xen_state.hpp"
#include "fabric/base/unix_socket.hpp"
#include "memtap-dpdk/handshake.hpp"
#include "tools/xen_clone_domain.hpp"
#include "xen-glue/domain_pager.hpp"
#include "xen-glue/libxen_calls.hpp"
#include "xen-glue/paging_ring.hpp"
#include "xen-glue/shell.hpp"

namespace snowfabric::xen {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

/// Between two looks at the clone, and between two tries to find a memtap.
constexpr std::chrono::milliseconds kLookEvery{100};
/// Whom a memtap refuses it lets go at once; and it will again.
constexpr std::chrono::milliseconds kRefusedWait{2000};

struct Options {
  std::string descriptor, memtap, name, config, info;
};

std::atomic<bool> stop_asked{false};

void say(const std::string& text) { fmt::print(stderr, "sf-xen-clone: {}\n", text); }

std::int64_t ms_since(Clock::time_point began) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - began).count();
}

/// What we know of the paging ring that the memtap at work has: we mapped its page before that took
/// it out of the domain, and can read it when that is dead.
class RingView {
 public:
  explicit RingView(Domain domain) : domain_{domain} {}

  /// Before a memtap gets the domain. The pages before stay, for that may refuse.
  /// @return as DomainPager::map_ring_page
  [[nodiscard]] Result<void> renew() {
    auto page = DomainPager::map_ring_page(domain_);
    if (!page) return std::unexpected(page.error());
    std::ranges::fill(page->page(0), std::byte{});  // it may be somebody's of before
    pages_.push_back(std::move(*page));
    return {};
  }
  /// The memtap has it: Xen writes to the last page now.
  void accepted() { pages_.erase(pages_.begin(), std::prev(pages_.end())); }
  /// Has the domain stand, with nobody in the way of the next memtap: DomainPager::pause_drained.
  /// @return whether a ring was full
  [[nodiscard]] Result<bool> pause_drained() {
    std::vector<DomainPager::RingPage> rings;
    for (const ForeignPages& page : pages_) rings.push_back(page.page(0));
    std::vector<Gfn> asked;
    const auto was_full = DomainPager::pause_drained(domain_, rings, asked);
    for (const Gfn page : asked) add(page);
    return was_full;
  }
  /// Of all memtaps so far, the last of them dead: pages that may be asked for by nobody any more.
  /// @pre the domain is paused
  [[nodiscard]] const std::vector<Gfn>& left_asked() {
    for (const ForeignPages& ring : pages_)
      for (const Gfn page : PagingRing::left_asked(ring.page(0))) add(page);
    if (left_.size() > kMaxAskedPages) {
      say(fmt::format(
          "{} pages that earlier memtaps were asked for, gfn {:#x} among them, are "
          "forgotten: send [{{\"complete\": {}}}] to the next memtap's socket, or a vCPU "
          "that touches one of those that have not come waits for ever",
          left_.size() - kMaxAskedPages, left_.front().value, getpid()));
      left_.erase(left_.begin(), left_.end() - kMaxAskedPages);  // the last deaths' stay
    }
    return left_;
  }

 private:
  void add(Gfn page) {
    std::erase(left_, page);
    left_.push_back(page);
  }

  Domain domain_;
  std::list<ForeignPages> pages_;
  std::vector<Gfn> left_;
};

/// @return errno of the call: no memtap is there
Result<UniqueFd> connect_to_memtap(const Options& options) {
  const auto address = UnixAddress::of(options.memtap);
  if (!address) return std::unexpected(address.error());
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket) return fail(errno, "socket AF_UNIX");
  if (connect(socket.get(), address->get(), UnixAddress::size()) != 0)
    return fail(errno, fmt::format("connect to the memtap at {}", options.memtap));
  return socket;
}

/// @param asked  pages of the memtap before, if there was one
Result<void> hand_over(const UniqueFd& memtap, const Domain& domain, const std::string& image,
                       const std::vector<Gfn>* asked) {
  Json message = {{{"adapter", "xen"},
                   {"domain", static_cast<std::uint16_t>(domain.id())},
                   {"image", image},
                   {"recover", asked != nullptr}}};
  if (asked != nullptr) {
    message[0]["asked"] = Json::array();
    for (const Gfn page : *asked) message[0]["asked"].push_back(page.value);
  }
  if (send_with_fds(memtap.get(), message.dump(), {}) < 0) return fail(errno, "send to the memtap");
  return {};
}

/// memtap says nothing there: what can be read is the end.
bool is_closed(const UniqueFd& socket, std::chrono::milliseconds patience) {
  pollfd end{socket.get(), POLLIN, 0};
  return poll(&end, 1, static_cast<int>(patience.count())) > 0;
}

/// @return ECONNABORTED: memtap wants none of it
Result<void> wait_until_it_runs(const Domain& domain, const UniqueFd& memtap) {
  for (;;) {
    const auto info = domain.info();
    if (!info) return std::unexpected(info.error());
    if (!info->paused) return {};
    if (stop_asked) return fail(ECANCELED, "waiting for the clone's first pages");
    if (is_closed(memtap, kLookEvery / 10))
      return fail(ECONNABORTED, "memtap refused the clone, or ended: its log says why");
  }
}

/// The memtap that has the clone, and the search for the next when that is gone.
class Memtap {
 public:
  Memtap(const Options& options, Domain domain, std::string image)
      : options_{options}, domain_{domain}, image_{std::move(image)}, ring_{domain} {}

  /// The first. @return errno of the call that failed
  [[nodiscard]] Result<void> find_first() {
    auto memtap = connect_to_memtap(options_);
    if (!memtap) return std::unexpected(memtap.error());
    if (auto ok = ring_.renew(); !ok) return ok;
    if (auto ok = hand_over(*memtap, domain_, image_, nullptr); !ok) return ok;
    ring_.accepted();
    socket_ = std::move(*memtap);
    return {};
  }
  [[nodiscard]] const UniqueFd& socket() const noexcept { return socket_; }

  /// Waits a moment, and tries if it has to.
  void look(std::uint64_t nb_paged_pages) {
    if (!socket_) {
      std::this_thread::sleep_for(wait_);
      find_next();
    } else if (is_closed(socket_, kLookEvery)) {
      socket_ = UniqueFd{};
      if (nb_paged_pages > 0)
        say(fmt::format("memtap is gone, and the clone waits for the next: it lacks {} pages",
                        nb_paged_pages));
    }
  }

 private:
  void find_next() {
    auto next = connect_to_memtap(options_);
    if (!next) return;
    const auto was_full = recover(*next);
    if (!was_full) {
      const Error& why = was_full.error();
      if (std::exchange(wait_, kRefusedWait) != kRefusedWait)
        say(fmt::format("{}: {}", why.what, std::strerror(why.errnum)));
      return;
    }
    if (is_closed(*next, kRefusedWait)) {
      if (std::exchange(wait_, kRefusedWait) != kRefusedWait)
        say("the memtap there refuses the clone: its log says why");
      return;
    }
    say(*was_full
            ? "the clone is handed to the next memtap; more vCPUs waited than the ring has slots"
            : "the clone is handed to the next memtap");
    ring_.accepted();
    wait_ = kLookEvery;
    socket_ = std::move(*next);
  }

  /// From the look at the dead memtap's ring until the next has taken over no vCPU may ask. A clone
  /// that has all its memory runs on, whatever memtap that is: it asks for nothing any more.
  /// @return whether the dead one's ring was full
  [[nodiscard]] Result<bool> recover(const UniqueFd& next) {
    const auto info = domain_.info();
    if (!info) return std::unexpected(info.error());
    const bool is_complete = info->nb_paged_pages == 0;
    const auto was_full = ring_.pause_drained();
    we_paused_it_ |= !info->paused;
    if (is_complete && we_paused_it_) {
      const auto now = domain_.info();
      if (!now) return std::unexpected(now.error());
      if (now->paused)
        if (const auto ok = domain_.unpause(); !ok) return std::unexpected(ok.error());
      we_paused_it_ = false;
    }
    if (!was_full) return was_full;
    const std::vector<Gfn> asked = is_complete ? std::vector<Gfn>{} : ring_.left_asked();
    if (const auto ok = ring_.renew(); !ok) return std::unexpected(ok.error());
    if (const auto ok = hand_over(next, domain_, image_, &asked); !ok)
      return std::unexpected(ok.error());
    return was_full;
  }

  const Options& options_;
  Domain domain_;
  std::string image_;
  RingView ring_;
  bool we_paused_it_ = false;
  UniqueFd socket_;
  std::chrono::milliseconds wait_ = kLookEvery;
};

/// Until the clone ends, or we are told to end it.
Result<void> keep(const Domain& domain, Memtap& memtap, Clone& clone) {
  while (!stop_asked) {
    DomainInfo info;
    const int errnum = domain.calls().info(domain.id(), info);
    if (errnum == ESRCH || info.dying) {
      clone.is_gone();
      return {};
    }
    if (auto ok = domain.checked(errnum, "info"); !ok) return ok;
    if (info.shut_down && !info.suspended) return {};  // suspended: somebody forks or saves it
    memtap.look(info.nb_paged_pages);
  }
  return {};
}

void write_info(const std::string& path, const Json& info) {
  std::ofstream file{path + ".new"};
  file << info.dump(2) << '\n';
  file.close();
  if (!file || std::rename((path + ".new").c_str(), path.c_str()) != 0)
    say(fmt::format("cannot write {}: {}", path, std::strerror(errno)));
}

Result<void> run(const Options& options) {
  const auto descriptor = read_descriptor(options.descriptor);
  if (!descriptor) return std::unexpected(descriptor.error());
  const auto parent = state_of(*descriptor);
  if (!parent) return std::unexpected(parent.error());
  const std::string image = image_name(descriptor->image_id, descriptor->epoch);
  const auto calls = open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const std::uint64_t nb_pages = descriptor->spaces.front().nb_pages;

  const auto began = Clock::now();
  Clone clone{**calls, options.name};
  const auto domain = clone.create(options.config, nb_pages, *parent);
  if (!domain) return std::unexpected(domain.error());
  Json info = {{"name", options.name},
               {"domain", static_cast<std::uint16_t>(domain->id())},
               {"created_ms", ms_since(began)}};
  if (auto ok = make_shell(*domain, nb_pages, *parent, [](std::uint64_t) {}); !ok) return ok;
  info["evicted_ms"] = ms_since(began);
  Memtap memtap{options, *domain, image};
  if (auto ok = memtap.find_first(); !ok) return ok;
  if (auto ok = wait_until_it_runs(*domain, memtap.socket()); !ok) return ok;
  info["running_ms"] = ms_since(began);
  say(fmt::format("{} ({}) runs after {} ms: shell {} ms, its memory evicted {} ms", options.name,
                  to_string(domain->id()), info["running_ms"].get<std::int64_t>(),
                  info["created_ms"].get<std::int64_t>(), info["evicted_ms"].get<std::int64_t>()));
  if (!options.info.empty()) write_info(options.info, info);
  return keep(*domain, memtap, clone);
}

}  // namespace
}  // namespace snowfabric::xen

int main(int argc, char** argv) {
  using namespace snowfabric;
  CLI::App cli{"Starts a clone of a Xen domain from a descriptor and keeps it until it ends.",
               "sf-xen-clone"};
  xen::Options options;
  cli.set_version_flag("--version", SNOWFABRIC_VERSION);
  cli.add_option("DESCRIPTOR", options.descriptor, "file that memserver-dpdk --xen wrote")
      ->required();
  cli.add_option("--memtap", options.memtap, "socket of this host's memtap for the image")
      ->required();
  cli.add_option("--name", options.name, "of the clone, as xl list shows it")
      ->required()
      ->check(xen::name_error);
  cli.add_option("--config", options.config,
                 "file of lines for xl.cfg that the clone needs here: vif, cpus and the like");
  cli.add_option("--info", options.info, "write the clone's domain and times here when it runs");
  CLI11_PARSE(cli, argc, argv);
  for (const int signal : {SIGINT, SIGTERM})
    std::signal(signal, [](int) { xen::stop_asked = true; });
  const auto result = xen::run(options);
  if (!result)
    xen::say(fmt::format("{}: {}", result.error().what, std::strerror(result.error().errnum)));
  return result ? 0 : 1;
}
