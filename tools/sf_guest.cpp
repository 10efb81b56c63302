// SPDX-License-Identifier: BSD-3-Clause
//
// sf-guest: a guest without a VM. It hands its empty memory to memtap as Firecracker would, faults
// the pages in as a clone would, and compares each with the image.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "tools/sf_guest_link.hpp"
#include "tools/sf_guest_order.hpp"

namespace snowfabric {
namespace {

using Clock = std::chrono::steady_clock;

enum ExitCode : int { kOk = 0, kMismatch = 1, kSetUp = 2, kMemtapGone = 3, kPoisoned = 4 };
constexpr int kTerminated = 128 + SIGTERM;

struct Options {
  std::string socket_path, image_path, json_path, gate_path;
  TouchPlan plan;
  HandshakeForm form;
  unsigned id = 0, nb_threads = 1, remove_percent = 0;
  unsigned connect_timeout_s = 10, pause_us = 0;
  bool same_pages = false, progress = false, hold = false;
};

/// What one thread saw.
struct Findings {
  std::vector<std::uint64_t> fault_ns;
  std::uint64_t mismatches = 0;
  std::uint64_t first_mismatch = ~std::uint64_t{0};
  Clock::time_point first_page = Clock::time_point::max();
};

struct Removal {
  std::uint64_t nb_pages = 0;
  std::uint64_t not_zero = 0;
};

// Only signal handlers and the watcher need these beyond a function's reach.
const std::byte* memory_begin = nullptr;
const std::byte* memory_end = nullptr;
std::atomic<bool> complete{false};
std::atomic<std::uint64_t> nb_touched{0};

void on_sigterm(int) { _exit(kTerminated); }

/// A thread that waits on a page that cannot be had is told so by SIGBUS.
void on_sigbus(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  const bool ours = address >= memory_begin && address < memory_end;
  const std::string_view why = ours ? "sf-guest: page failed (poisoned)\n"
                                    : "sf-guest: the image file shrank while it was read\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, why.data(), why.size());
  _exit(ours ? kPoisoned : kSetUp);
}

void install_handlers() {
  struct sigaction term{};
  term.sa_handler = on_sigterm;
  sigaction(SIGTERM, &term, nullptr);
  struct sigaction bus{};
  bus.sa_sigaction = on_sigbus;
  bus.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &bus, nullptr);
}

/// Leaves at once if memtap goes before the work is done: a blocked touch would never return,
/// because we hold the userfaultfd ourselves.
void watch_memtap(int socket, const Options& options, std::uint64_t nb_pages) {
  while (!complete.load()) {
    pollfd p{socket, POLLRDHUP, 0};
    poll(&p, 1, 200);
    if (complete.load()) return;
    if (p.revents != 0) {
      fmt::print(stderr, "sf-guest {}: memtap closed the connection after {} of {} pages\n",
                 options.id, nb_touched.load(), nb_pages);
      _exit(kMemtapGone);
    }
    if (options.progress)
      fmt::print(stderr, "sf-guest {}: {} of {} pages\n", options.id, nb_touched.load(), nb_pages);
  }
}

/// Faults of this thread so far. A touch that waited on the userfaultfd counts as a major one, one
/// that found the page arriving as a minor one; a page that is in already makes none. Not under
/// AddressSanitizer, whose shadow memory faults too: the same holds for touch().
[[gnu::noinline, gnu::no_sanitize_address]] long nb_faults() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt + usage.ru_minflt;
}

[[gnu::noinline, gnu::no_sanitize_address]] void touch(const std::byte* page) {
  [[maybe_unused]] const std::byte first = *static_cast<const volatile std::byte*>(page);
}

void touch_pages(const std::vector<std::uint64_t>& pages, const GuestMemory& memory,
                 const ImageFile& image, std::chrono::microseconds pause, Findings& findings) {
  findings.fault_ns.reserve(pages.size());
  for (const std::uint64_t gfn : pages) {
    if (pause.count() != 0) std::this_thread::sleep_for(pause);
    const long faults_before = nb_faults();
    const auto begin = Clock::now();
    touch(memory.page(gfn));
    const auto end = Clock::now();
    if (nb_faults() != faults_before)
      findings.fault_ns.push_back(static_cast<std::uint64_t>((end - begin).count()));
    findings.first_page = std::min(findings.first_page, end);
    if (std::memcmp(memory.page(gfn), image.page(gfn), kPageSize) != 0) {
      ++findings.mismatches;
      findings.first_mismatch = std::min(findings.first_mismatch, gfn);
    }
    nb_touched.fetch_add(1, std::memory_order_relaxed);
  }
}

std::vector<Findings> touch_all(const Options& options, const GuestMemory& memory,
                                const ImageFile& image) {
  const auto order = touch_order(options.plan);
  std::vector<Findings> findings(options.nb_threads);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < options.nb_threads; ++t)
    threads.emplace_back([&, t] {
      const auto share = share_of(order, t, options.nb_threads);
      touch_pages(options.same_pages ? order : share, memory, image,
                  std::chrono::microseconds{options.pause_us}, findings[t]);
    });
  for (auto& thread : threads) thread.join();
  return findings;
}

/// Gives pages back as a balloon would; from then on they must read as zeros.
Removal remove_pages(const Options& options, const GuestMemory& memory) {
  auto pages = touch_order(options.plan);
  std::mt19937_64 random{options.plan.seed + 1};
  std::ranges::shuffle(pages, random);
  pages.resize(pages.size() * options.remove_percent / 100);
  Removal removal{pages.size(), 0};
  const std::array<std::byte, kPageSize> zeros{};
  for (const std::uint64_t gfn : pages) madvise(memory.page(gfn), kPageSize, MADV_DONTNEED);
  for (const std::uint64_t gfn : pages)
    if (std::memcmp(memory.page(gfn), zeros.data(), kPageSize) != 0) ++removal.not_zero;
  return removal;
}

double us_since(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - begin).count();
}

/// @param sorted_ns  ascending; 0 when empty
double percentile_us(const std::vector<std::uint64_t>& sorted_ns, double q) {
  if (sorted_ns.empty()) return 0;
  const auto rank = static_cast<std::size_t>(q * static_cast<double>(sorted_ns.size()));
  return static_cast<double>(sorted_ns[std::min(rank, sorted_ns.size() - 1)]) / 1000;
}

nlohmann::json report(const Options& options, const std::vector<Findings>& findings,
                      const Removal& removal, std::uint64_t nb_pages, Clock::time_point begin,
                      Clock::time_point end) {
  Findings all;
  for (const Findings& f : findings) {
    all.fault_ns.insert(all.fault_ns.end(), f.fault_ns.begin(), f.fault_ns.end());
    all.mismatches += f.mismatches;
    all.first_mismatch = std::min(all.first_mismatch, f.first_mismatch);
    all.first_page = std::min(all.first_page, f.first_page);
  }
  std::ranges::sort(all.fault_ns);
  nlohmann::json json{{"id", options.id},
                      {"pages", nb_pages},
                      {"verified", all.mismatches == 0 && removal.not_zero == 0},
                      {"mismatches", all.mismatches},
                      {"first_mismatch", nullptr},
                      {"removed", removal.nb_pages},
                      {"removed_not_zero", removal.not_zero},
                      {"faults", all.fault_ns.size()},
                      {"fault_us_p50", percentile_us(all.fault_ns, 0.50)},
                      {"fault_us_p99", percentile_us(all.fault_ns, 0.99)},
                      {"fault_us_max", percentile_us(all.fault_ns, 1.0)},
                      {"first_page_us", us_since(begin, all.first_page)},
                      {"complete_s", us_since(begin, end) / 1e6}};
  if (all.mismatches > 0) json["first_mismatch"] = all.first_mismatch;
  return json;
}

Result<void> write_json(const std::string& path, const nlohmann::json& json) {
  const std::string text = json.dump(2) + "\n";
  if (path == "-") {
    fmt::print("{}", text);
    std::fflush(stdout);
    return {};
  }
  std::ofstream file{path};
  if (!(file << text << std::flush)) return fail(EIO, fmt::format("write {}", path));
  return {};
}

/// Waits for whoever holds an exclusive lock on the file: clones of one fork start together.
Result<void> pass_gate(const std::string& path) {
  if (path.empty()) return {};
  const UniqueFd gate{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!gate) return fail(errno, fmt::format("open {}", path));
  while (flock(gate.get(), LOCK_SH) != 0)
    if (errno != EINTR) return fail(errno, fmt::format("flock {}", path));
  return {};
}

/// @return true if every page was right
Result<bool> run(Options& options) {
  const auto image = ImageFile::map(options.image_path);
  if (!image) return std::unexpected(image.error());
  const auto memory = GuestMemory::make(image->nb_pages());
  if (!memory) return std::unexpected(memory.error());
  options.plan.nb_pages = image->nb_pages();
  memory_begin = memory->page(0);
  memory_end = memory->page(image->nb_pages());
  install_handlers();

  const auto socket = hand_over(options.socket_path, *memory, options.form,
                                std::chrono::seconds{options.connect_timeout_s});
  if (!socket) return std::unexpected(socket.error());
  if (auto ok = pass_gate(options.gate_path); !ok) return std::unexpected(ok.error());
  const auto begin = Clock::now();
  const std::uint64_t nb_pages = touch_order(options.plan).size();
  std::thread watcher{[&] { watch_memtap(socket->get(), options, nb_pages); }};
  const auto findings = touch_all(options, *memory, *image);
  const auto end = Clock::now();
  const Removal removal = remove_pages(options, *memory);
  complete = true;
  shutdown(socket->get(), SHUT_RD);  // wakes the watcher; memtap sees nothing of it
  watcher.join();

  const auto json = report(options, findings, removal, nb_pages, begin, end);
  if (!options.json_path.empty())
    if (auto ok = write_json(options.json_path, json); !ok) return std::unexpected(ok.error());
  fmt::print(stderr, "sf-guest {}: {} pages in {:.3f} s, {}\n", options.id, nb_pages,
             json["complete_s"].get<double>(),
             json["verified"].get<bool>() ? "all verified" : "WRONG BYTES");
  while (options.hold) pause();  // SIGTERM ends it
  return json["verified"].get<bool>();
}

void add_options(CLI::App& app, Options& o) {
  static const std::map<std::string, TouchOrder> orders{{"sequential", TouchOrder::kSequential},
                                                        {"random", TouchOrder::kRandom},
                                                        {"hotset", TouchOrder::kHotSet}};
  app.option_defaults()->always_capture_default();
  app.add_option("--socket", o.socket_path, "memtap's guest socket")->required();
  app.add_option("--image", o.image_path, "the image memserver serves, to compare with")
      ->required();
  app.add_option("--id", o.id, "number of this guest in its report");
  app.add_option_function<std::string>(
         "--order", [&o](const std::string& name) { o.plan.order = orders.at(name); },
         "order of first touches")
      ->check(CLI::IsMember(orders));
  app.add_option("--seed", o.plan.seed, "of this guest's own order");
  app.add_option("--shared-seed", o.plan.shared_seed, "of the hot set, the same for all guests");
  app.add_option("--hot-percent", o.plan.hot_percent, "size of the hot set")
      ->check(CLI::Range(0, 100));
  app.add_option("--threads", o.nb_threads, "vCPUs")->check(CLI::Range(1, 64));
  app.add_flag("--same-pages", o.same_pages, "every thread touches every page");
  app.add_option("--limit-pages", o.plan.limit_pages, "touch only the first so many of the order");
  app.add_option("--pause-us", o.pause_us, "before each touch, microseconds");
  app.add_option("--remove", o.remove_percent, "give back this percentage afterwards")
      ->check(CLI::Range(0, 100));
  app.add_option("--json", o.json_path, "write the report here; - is standard output");
  app.add_option("--gate", o.gate_path,
                 "after the handshake, wait until nobody holds an exclusive flock on this file");
  app.add_option("--connect-timeout", o.connect_timeout_s, "seconds to wait for memtap");
  app.add_flag("--progress", o.progress, "say on standard error how far it is");
  app.add_flag("--hold", o.hold, "when done, stay until SIGTERM");
  app.add_flag("--two-fds", o.form.two_fds, "pass a second descriptor in the handshake");
  app.add_flag("--old-handshake", o.form.old, "leave the page size out of the handshake");
}

}  // namespace
}  // namespace snowfabric

int main(int argc, char** argv) {
  using namespace snowfabric;
  CLI::App app{
      "A guest without a VM: faults its memory in through memtap and verifies every page.\n"
      "Exit codes: 0 verified, 1 wrong bytes, 2 set-up, 3 memtap gone, 4 page failed, 143 "
      "SIGTERM."};
  Options options;
  add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kSetUp;
  }
  const auto right = run(options);
  if (!right) {
    fmt::print(stderr, "sf-guest {}: {}: {}\n", options.id, right.error().what,
               std::strerror(right.error().errnum));
    return kSetUp;
  }
  return *right ? kOk : kMismatch;
}
