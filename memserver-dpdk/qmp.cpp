// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/qmp.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "fabric/base/unix_socket.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kMaxLineBytes = std::size_t{16} << 20U;  // query-qmp-schema has 400 KB

std::string reason_in(const Qmp::Json& error) {
  const auto found = error.is_object() ? error.find("desc") : error.end();
  return found != error.end() && found->is_string() ? found->get<std::string>() : "no reason given";
}

}  // namespace

Result<Qmp> Qmp::connect(const std::string& path, std::chrono::milliseconds timeout) {
  const auto address = UnixAddress::of(path);
  if (!address) return std::unexpected(address.error());
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket) return fail(errno, "socket AF_UNIX");
  const timeval limit{.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (setsockopt(socket.get(), SOL_SOCKET, option, &limit, sizeof limit) != 0)
      return fail(errno, "setsockopt time-out on a QMP socket");
  if (::connect(socket.get(), address->get(), UnixAddress::size()) != 0)
    return fail(errno, fmt::format("connect to QEMU's QMP socket {}", path));
  ucred peer{};
  socklen_t len = sizeof peer;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
    return fail(errno, "getsockopt SO_PEERCRED on a QMP socket");
  Qmp qmp{std::move(socket), peer.pid, path};
  const auto greeting = qmp.receive();
  if (!greeting) return std::unexpected(greeting.error());
  if (!greeting->contains("QMP"))
    return fail(EPROTO, fmt::format("{}: no QMP greeting: is it the socket of -qmp or -mon "
                                    "mode=control?",
                                    path));
  if (auto ok = qmp.execute("qmp_capabilities"); !ok) return std::unexpected(ok.error());
  return qmp;
}

Qmp Qmp::adopt(UniqueFd socket) {
  Qmp qmp{std::move(socket), 0, "an adopted QMP socket"};
  qmp.amid_line_ = true;
  return qmp;
}

Result<Qmp::Json> Qmp::execute(const std::string& command, Json arguments, int fd) {
  // Answers to a command that timed out, or to those of whom we adopted the socket, come still.
  const std::string id = fmt::format("{}-{}", getpid(), ++nb_commands_);
  Json message{{"execute", command}, {"id", id}};
  if (!arguments.is_null()) message["arguments"] = std::move(arguments);
  if (auto ok = send(message, fd); !ok) return std::unexpected(ok.error());
  for (;;) {
    auto answer = receive();
    if (!answer) return answer;
    if (const auto theirs = text_of(*answer, "id"); !theirs.empty() && theirs != id) continue;
    if (const auto found = answer->find("return"); found != answer->end()) return *found;
    if (const auto found = answer->find("error"); found != answer->end())
      return fail(EREMOTEIO, fmt::format("QEMU refused {}: {}", command, reason_in(*found)));
    if (!answer->contains("event"))
      return fail(EPROTO, fmt::format("{}: neither an answer nor an event", path_));
    note(*answer);
  }
}

void Qmp::note(const Json& event) {
  if (text_of(event, "event") != "STOP") return;
  const Json when = event.value("timestamp", Json{});
  stopped_at_ns_ =
      number_of(when, "seconds") * 1'000'000'000 + number_of(when, "microseconds") * 1000;
}

Result<void> Qmp::send(const Json& message, int fd) {
  const std::string text = message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (std::size_t done = 0; done < text.size();) {
    const bool with_fd = done == 0 && fd >= 0;
    const ssize_t n = send_with_fds(socket_.get(), std::string_view{text}.substr(done),
                                    {&fd, with_fd ? std::size_t{1} : 0});
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return fail(ETIMEDOUT, fmt::format("QEMU does not listen on {}", path_));
    if (n < 0) return fail(errno, fmt::format("send to QEMU on {}", path_));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<Qmp::Json> Qmp::receive() {
  for (;;) {
    const auto text = line();
    if (!text) return std::unexpected(text.error());
    Json json = Json::parse(*text, nullptr, false);
    const bool may_be_a_part = std::exchange(amid_line_, false);
    if (json.is_object()) return json;
    if (!may_be_a_part)
      return fail(EPROTO, fmt::format("{}: not a JSON object: \"{:.60}\"", path_, *text));
  }
}

Result<std::string> Qmp::line() {
  for (std::size_t looked = 0;;) {
    if (const auto end = buffer_.find('\n', looked); end != std::string::npos) {
      std::string text = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return text;
    }
    looked = buffer_.size();
    if (looked > kMaxLineBytes) return fail(EPROTO, fmt::format("{}: a line without end", path_));
    std::array<char, 16384> piece;
    const ssize_t n = recv(socket_.get(), piece.data(), piece.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return fail(ETIMEDOUT, fmt::format("QEMU does not answer on {}: is another client "
                                         "connected to it?",
                                         path_));
    if (n < 0) return fail(errno, fmt::format("receive from QEMU on {}", path_));
    if (n == 0) return fail(ECONNRESET, fmt::format("QEMU closed {}", path_));
    buffer_.append(piece.data(), static_cast<std::size_t>(n));
  }
}

std::string text_of(const Qmp::Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string{};
}

std::uint64_t number_of(const Qmp::Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found != object.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

}  // namespace snowfabric
