// SPDX-License-Identifier: BSD-3-Clause
// xen-bench: what Xen itself takes for a freeze and for a page fault, on the domains that memserver
// and memtap are measured with. In a dom0; tools/xen-testbed bench runs it.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/socket.h>

#include "descriptor/descriptor.hpp"
#include "descriptor/xen_state.hpp"
#include "fabric/base/parse_number.hpp"
#include "fabric/base/unix_socket.hpp"
#include "xen-glue/bare_loop.hpp"
#include "xen-glue/copier.hpp"
#include "xen-glue/domain_pager.hpp"
#include "xen-glue/frozen_domain.hpp"
#include "xen-glue/guest_bitmap.hpp"
#include "xen-glue/libxen_calls.hpp"

namespace snowfabric::xen {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
using Micros = std::chrono::microseconds;

constexpr auto kRest = std::chrono::seconds{1};  // a guest resumes its devices meanwhile
std::atomic<bool> stop_asked{false};

Micros since(Clock::time_point began) {
  return std::chrono::duration_cast<Micros>(Clock::now() - began);
}

// --- freeze -----------------------------------------------------------------------------------

/// Anonymous memory, touched.
class Buffer {
 public:
  /// @return ENOMEM
  static Result<Buffer> make(std::size_t nb_bytes) {
    void* bytes = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bytes == MAP_FAILED) return fail(errno, fmt::format("mmap of {} bytes", nb_bytes));
    return Buffer{{static_cast<std::byte*>(bytes), nb_bytes}};
  }
  Buffer(Buffer&& from) noexcept : bytes_{std::exchange(from.bytes_, {})} {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

 private:
  explicit Buffer(std::span<std::byte> bytes) : bytes_{bytes} {}
  std::span<std::byte> bytes_;
};

/// What no freeze can be faster than: suspend, HVM record, resume.
struct Bare {
  Micros suspend{}, pause{};
};
Result<Bare> bare_freeze(const Domain& domain) {
  Bare bare;
  const auto asked = Clock::now();
  if (auto ok = domain.store_write("control/shutdown", "suspend"); !ok)
    return std::unexpected(ok.error());
  for (;;) {
    const auto info = domain.info();
    if (!info) return std::unexpected(info.error());
    if (info->suspended) break;
    if (since(asked) > std::chrono::seconds{20}) return fail(ETIMEDOUT, "suspend");
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  bare.suspend = since(asked);
  const auto suspended = Clock::now();
  const auto context = domain.context();
  const auto resumed = domain.resume();
  bare.pause = since(suspended);
  if (!context) return std::unexpected(context.error());
  if (!resumed) return std::unexpected(resumed.error());
  return bare;
}

/// All of its RAM into a memfd, twice: the file gets memory for it, and then has it.
struct Copies {
  Micros into_new{}, into_old{};
};
Result<Copies> copy_twice(const Domain& domain, std::uint64_t nb_pages) {
  const auto file = make_copy(nb_pages);
  if (!file) return std::unexpected(file.error());
  Copies copies;
  for (Micros* took : {&copies.into_new, &copies.into_old}) {
    Copier copier{domain, file->get(), nb_pages};
    const auto began = Clock::now();
    if (const auto ok = copier.copy({}); !ok) return std::unexpected(ok.error());
    *took = since(began);
  }
  return copies;
}

Result<Json> measure_freeze(const Domain& domain, std::span<std::byte> room) {
  const auto bare_copied = bare_copy(domain.id(), room, kMapBurstPages);
  if (!bare_copied) return std::unexpected(bare_copied.error());
  const auto copies = copy_twice(domain, room.size() / kPageSize);
  if (!copies) return std::unexpected(copies.error());
  std::this_thread::sleep_for(kRest);
  const auto bare = bare_freeze(domain);
  if (!bare) return std::unexpected(bare.error());
  std::this_thread::sleep_for(kRest);
  const auto frozen = FrozenDomain::take(domain, {});
  if (!frozen) return std::unexpected(frozen.error());
  return Json{{"pages", frozen->nb_pages},
              {"bare_copy_us", bare_copied->count()},
              {"copy_us", copies->into_old.count()},
              {"first_copy_us", copies->into_new.count()},
              {"freeze_copy_us", frozen->copy.count()},
              {"bare_suspend_us", bare->suspend.count()},
              {"bare_pause_us", bare->pause.count()},
              {"suspend_us", frozen->suspend.count()},
              {"pause_us", frozen->pause.count()},
              {"pause_pages", frozen->nb_pages_in_pause},
              {"avoided_pages", frozen->nb_avoided_pages}};
}

Result<void> freeze(const std::string& name, unsigned nb_rounds) {
  const auto calls = open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const auto domain = find_domain(**calls, name);
  if (!domain) return std::unexpected(domain.error());
  const auto size = domain->store_read("memory/static-max");
  if (!size) return std::unexpected(size.error());
  const auto room = Buffer::make(parse_number(*size, 10).value_or(0) * 1024);
  if (!room) return std::unexpected(room.error());
  Json rounds = Json::array();
  for (unsigned i = 0; i < nb_rounds; ++i) {
    auto round = measure_freeze(*domain, room->bytes());
    if (!round) return std::unexpected(round.error());
    rounds.push_back(std::move(*round));
  }
  fmt::print("{}\n", rounds.dump());
  return {};
}

// --- pager ------------------------------------------------------------------------------------

/// The image, mapped.
Result<std::span<const std::byte>> map_image(const std::string& path, std::uint64_t nb_pages) {
  const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd) return fail(errno, "open " + path);
  void* bytes =
      mmap(nullptr, nb_pages * kPageSize, PROT_READ, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (bytes == MAP_FAILED) return fail(errno, "mmap " + path);
  return std::span<const std::byte>{static_cast<const std::byte*>(bytes), nb_pages * kPageSize};
}

/// The socket of the next sf-xen-clone, and the domain it brings.
struct Arrival {
  UniqueFd socket;
  DomId domain;
};
Result<Arrival> wait_for_clone(const std::string& path) {
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  const UniqueFd listener{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!listener || bind(listener.get(), address->get(), UnixAddress::size()) != 0 ||
      listen(listener.get(), 1) != 0)
    return fail(errno, "listen at " + path);
  UniqueFd socket{accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)};
  unlink(path.c_str());
  std::string text(4096, '\0');
  const auto got = socket ? recv(socket.get(), text.data(), text.size(), 0) : -1;
  if (got < 0) return fail(errno, "a clone at " + path);
  text.resize(static_cast<std::size_t>(got));
  const auto message = nlohmann::json::parse(text, nullptr, false);
  if (!message.is_array() || message.empty() || !message[0].contains("domain"))
    return fail(EPROTO, "a clone says " + text);
  return Arrival{std::move(socket), DomId{message[0]["domain"].get<std::uint16_t>()}};
}

/// Until told to end.
Result<void> serve(DomainPager& pager, std::span<const std::byte> image) {
  std::uint64_t nb_faults = 0;
  while (!stop_asked) {
    pollfd ready{pager.fd(), POLLIN, 0};
    poll(&ready, 1, 100);
    pager.acknowledge();
    DomainPager::Fault fault;
    PagingRing::Take taken;
    for (; (taken = pager.take(fault)) == PagingRing::Take::kRequest; ++nb_faults) {
      const Gfn page = fault.request.page;
      const int errnum = page.value < image.size() / kPageSize
                             ? pager.load(page, image.data() + page.value * kPageSize)
                             : 0;
      if (errnum != 0 && errnum != ENOENT) return pager.domain().checked(errnum, "load", page);
      pager.answer(page);
    }
    if (taken == PagingRing::Take::kBroken) return fail(EPROTO, "the paging ring");
    pager.notify();
  }
  fmt::print("{}\n", Json{{"faults", nb_faults}}.dump());
  return {};
}

/// Serves faults from local memory: a pager with nothing in its way.
Result<void> page(const std::string& socket, const std::string& descriptor_path,
                  const std::string& image_path) {
  const auto descriptor = read_descriptor(descriptor_path);
  if (!descriptor) return std::unexpected(descriptor.error());
  const auto state = state_of(*descriptor);
  if (!state) return std::unexpected(state.error());
  const std::uint64_t nb_pages = descriptor->spaces.front().nb_pages;
  const auto image = map_image(image_path, nb_pages);
  if (!image) return std::unexpected(image.error());
  const auto calls = open_libxen();
  if (!calls) return std::unexpected(calls.error());
  const auto arrival = wait_for_clone(socket);
  if (!arrival) return std::unexpected(arrival.error());

  const auto pager = DomainPager::enable(Domain{**calls, arrival->domain});
  if (!pager) return std::unexpected(pager.error());
  if (const auto& where = state->bitmap; where)
    if (const auto reset = GuestBitmap::reset((*pager)->domain(), *where, nb_pages); !reset)
      return std::unexpected(reset.error());
  for (const Gfn eager : state->eager)
    if (const int errnum = (*pager)->load(eager, image->data() + eager.value * kPageSize))
      return (*pager)->domain().checked(errnum, "load", eager);
  if (auto ok = (*pager)->domain().unpause(); !ok) return ok;
  return serve(**pager, *image);
}

}  // namespace
}  // namespace snowfabric::xen

int main(int argc, char** argv) {
  using namespace snowfabric;
  CLI::App cli{"What Xen itself takes for a freeze and for a page fault.", "xen-bench"};
  cli.set_version_flag("--version", SNOWFABRIC_VERSION);
  cli.require_subcommand(1);
  std::string domain, socket, descriptor, image;
  unsigned nb_rounds = 5;
  CLI::App* freeze =
      cli.add_subcommand("freeze", "freezes a running domain, bare and as memserver does");
  freeze->add_option("DOMAIN", domain, "name or number")->required();
  freeze->add_option("--rounds", nb_rounds)->capture_default_str();
  CLI::App* pager = cli.add_subcommand(
      "pager", "serves one clone's faults from an image in memory, in memtap's place");
  pager->add_option("SOCKET", socket, "where sf-xen-clone finds it")->required();
  pager->add_option("DESCRIPTOR", descriptor)->required();
  pager->add_option("IMAGE", image, "file with the parent's memory")->required();
  CLI11_PARSE(cli, argc, argv);
  for (const int signal : {SIGINT, SIGTERM})
    std::signal(signal, [](int) { xen::stop_asked = true; });
  const auto result =
      *freeze ? xen::freeze(domain, nb_rounds) : xen::page(socket, descriptor, image);
  if (!result)
    fmt::print(stderr, "xen-bench: {}: {}\n", result.error().what,
               std::strerror(result.error().errnum));
  return result ? 0 : 1;
}
