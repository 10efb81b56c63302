// SPDX-License-Identifier: BSD-3-Clause
// What memserver is answered by a guest, a memtap, the shim in a parent, and a parent's QEMU.
// Whatever they say: no crash, no hang, and what is accepted keeps its promises.
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <sys/socket.h>

#include "fabric/base/unix_socket.hpp"
#include "memserver-dpdk/clone_parent.hpp"
#include "memserver-dpdk/free_pages.hpp"
#include "memserver-dpdk/guest_ram.hpp"
#include "memserver-dpdk/parent_checks.hpp"
#include "memserver-dpdk/shim_client.hpp"
#include "tests/fuzz/fuzz_file.hpp"

namespace {

using namespace snowfabric;
using fuzz::check;

constexpr std::uint64_t kPages = 1000;

/// A unix socket that answers each client with one text, and closes.
class Peer {
 public:
  Peer() {
    const auto address = UnixAddress::of(path_);
    check(address.has_value());
    std::filesystem::remove(path_);
    check(bind(listener_.get(), address->get(), UnixAddress::size()) == 0);
    check(listen(listener_.get(), 1) == 0);
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() { std::filesystem::remove(path_); }

  /// `ask` connects once. @param hears  whether it says something first: the last word of that
  /// takes the place of each 'T' in the answer
  void answer(std::string text, bool hears, const auto& ask) {
    const std::jthread server{[&] {
      const UniqueFd client{accept(listener_.get(), nullptr, nullptr)};
      if (hears) put_token(text, hear(client.get()));
      (void)!send(client.get(), text.data(), text.size(), MSG_NOSIGNAL);
    }};
    ask(path_);
  }

 private:
  static std::string hear(int client) {
    std::array<char, 256> question{};
    const ssize_t n = recv(client, question.data(), question.size(), 0);
    check(n > 1);
    const std::string_view line{question.data(), static_cast<std::size_t>(n) - 1};
    return std::string{line.substr(line.rfind(' ') + 1)};
  }
  static void put_token(std::string& text, const std::string& token) {
    for (auto at = text.find('T'); at != std::string::npos; at = text.find('T', at + token.size()))
      text.replace(at, 1, token);
  }

  std::string path_ =
      std::filesystem::temp_directory_path() / ("sf_fuzz." + std::to_string(getpid()));
  UniqueFd listener_{socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
};

Peer& peer() {
  static Peer peer;
  return peer;
}

void check_free_frames(const std::vector<FrameRange>& frames) {
  check(frames.size() <= kPages);
  std::uint64_t next = 0;
  for (const FrameRange& range : frames) {
    check(range.first >= next && range.nb_frames > 0);
    next = range.first + range.nb_frames;
  }
  const std::vector<RamBlock> blocks{{"pc.ram", 0, kPages, kPages * kPageSize}};
  const std::vector<RamSpan> spans{{{0, 600}, "pc.ram", 0}, {{1U << 20U, 400}, "pc.ram", 600}};
  const auto avoided =
      avoidable(frames, spans, blocks, kPages, [](Gfn page) { return page.value % 2 == 0; });
  check(avoided && avoided->nb_pages <= avoided->nb_free && avoided->nb_free <= kPages);
}

void check_flat_view(std::string_view text) {
  for (const RamSpan& span : parse_flat_view(text))
    check(span.frames.nb_frames > 0 &&
          span.frames.nb_frames <= ~std::uint64_t{0} / kPageSize - span.frames.first + 1);
}

void ask_qemu(std::string_view text) {
  std::array<int, 2> ends;
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  const UniqueFd qemu{ends[0]};
  (void)!send(qemu.get(), text.data(), text.size(), MSG_NOSIGNAL);
  shutdown(qemu.get(), SHUT_WR);
  Qmp qmp = Qmp::adopt(UniqueFd{ends[1]});
  for (const auto ask : {refuse_writable_disks, refuse_foreign_writers, refuse_returned_memory,
                         refuse_incomplete_clones})
    (void)ask(qmp);
  (void)check_only_backend(qmp, kPages * kPageSize);
  (void)ask_ram_spans(qmp);
}

void check_shim_memory(const ShimMemory& memory) {
  std::uint64_t next = 0;
  for (const ShimRegion& region : memory.regions) {
    check(region.offset == next && region.size > 0 && region.size % kPageSize == 0);
    next += region.size;
  }
}

}  // namespace

/// First byte: who answers.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string text{reinterpret_cast<const char*>(data) + 1, size - 1};
  switch (data[0] % 5) {
    case 0:
      peer().answer(text, true, [](const std::string& path) {
        if (const auto frames = ask_free_frames(path, kPages, {}); frames)
          check_free_frames(*frames);
      });
      break;
    case 1:
      peer().answer(text, true, [](const std::string& path) {
        const std::atomic<bool> stop{false};
        (void)complete_clone(path, getpid(), stop, std::nullopt);
      });
      break;
    case 2:
      peer().answer(text, false, [](const std::string& path) {
        if (const auto memory = take_shim_memory(path); memory) check_shim_memory(*memory);
      });
      break;
    case 3: ask_qemu(text); break;
    default: check_flat_view(text);
  }
  return 0;
}
