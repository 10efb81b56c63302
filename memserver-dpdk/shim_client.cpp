// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/shim_client.hpp"

#include <array>
#include <cerrno>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <sys/time.h>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/unix_socket.hpp"

namespace snowfabric {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxRegions = 8;
constexpr std::size_t kMaxAnswerBytes = 64 * 1024;
constexpr timeval kPatience{.tv_sec = 10, .tv_usec = 0};

struct Answer {
  std::string text;
  std::vector<UniqueFd> fds;
};

Result<UniqueFd> connect_to(const std::string& path) {
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket) return fail(errno, "socket AF_UNIX");
  setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  if (connect(socket.get(), address->get(), UnixAddress::size()) != 0)
    return fail(errno, fmt::format("connect to the shim's socket {}; was the parent started with "
                                   "libsf-shim.so?",
                                   path));
  return socket;
}

/// Everything up to the end of a JSON value: the shim says one and no more.
Result<Answer> receive(int socket) {
  Answer answer;
  for (;;) {
    std::array<char, 4096> piece;
    const ssize_t n = receive_with_fds<1 + kMaxRegions>(socket, piece, answer.fds).nb_bytes;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, "receive from the shim");
    if (n == 0) return fail(EPROTO, "the shim closed before its answer was whole");
    answer.text.append(piece.data(), static_cast<std::size_t>(n));
    if (Json::accept(answer.text)) return answer;
    if (answer.text.size() > kMaxAnswerBytes) return fail(EPROTO, "the shim's answer has no end");
  }
}

std::optional<std::uint64_t> number(const Json& region, const char* name) {
  const auto field = region.is_object() ? region.find(name) : region.end();
  if (field == region.end() || !field->is_number_unsigned()) return std::nullopt;
  const auto value = field->get<std::uint64_t>();
  return value % kPageSize == 0 ? std::optional{value} : std::nullopt;
}

Result<ShimMemory> parse(Answer answer) {
  const Json json = Json::parse(answer.text, nullptr, false);
  if (json.is_object() && json.contains("error") && json["error"].is_string())
    return fail(json.value("busy", Json{}) == true ? EBUSY : ENOTSUP,
                fmt::format("the shim refuses: {}", json["error"].get<std::string>()));
  if (!json.is_array() || json.empty() || json.size() > kMaxRegions)
    return fail(EPROTO, "the shim's answer is not an array of regions");
  if (answer.fds.size() != json.size() + 1)
    return fail(EPROTO, fmt::format("the shim sent {} descriptors for {} regions",
                                    answer.fds.size(), json.size()));
  ShimMemory memory{.uffd = std::move(answer.fds[0]), .regions = {}};
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const auto base = number(json[i], "base_host_virt_addr");
    const auto size = number(json[i], "size");
    const auto file_offset = number(json[i], "file_offset");
    if (!base || !size || !file_offset || *size == 0 || number(json[i], "offset") != offset ||
        *size > std::numeric_limits<std::int64_t>::max() - offset)
      return fail(EPROTO, fmt::format("the shim's region {} cannot be", i));
    memory.regions.push_back({*base, *size, offset, std::move(answer.fds[i + 1]), *file_offset});
    offset += *size;
  }
  return memory;
}

}  // namespace

Result<ShimMemory> take_shim_memory(const std::string& socket_path) {
  const auto socket = connect_to(socket_path);
  if (!socket) return std::unexpected(socket.error());
  auto answer = receive(socket->get());
  if (!answer) return std::unexpected(answer.error());
  return parse(std::move(*answer));
}

}  // namespace snowfabric
