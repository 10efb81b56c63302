// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <map>
#include <string>

#include "memserver-dpdk/qmp.hpp"
#include "tests/unit/fake_server.hpp"

namespace snowfabric::testing {

/// What a QEMU answers to a command, by its name or its first argument: JSON, or "!" and why it
/// refuses. To all others it says [].
using QemuAnswers = std::map<std::string, std::string>;

/// The reply to one command as it stands on the wire.
inline std::string qemu_reply(const Qmp::Json& command, const QemuAnswers& answers) {
  std::string answer = command["execute"] == "qmp_capabilities" ? "{}" : "[]";
  for (const auto& [what, said] : answers)
    if (command["execute"] == what || command.dump().contains('"' + what + '"')) answer = said;
  if (!answer.starts_with('!')) return "{\"return\": " + answer + "}\n";
  return R"({"error": {"class": "GenericError", "desc": ")" + answer.substr(1) + "\"}}\n";
}

/// What `ask` makes of a QEMU that answers so.
template <class Ask>
auto asked_of_qemu(const QemuAnswers& answers, Ask&& ask) {
  FakeServer qemu{[&](FakeServer& q) {
    q.say("{\"QMP\": {}}\n");
    for (;;) {
      const Qmp::Json command = Qmp::Json::parse(q.hear().first, nullptr, false);
      if (!command.is_object()) return;  // it closed
      q.say(qemu_reply(command, answers));
    }
  }};
  auto connected = Qmp::connect(qemu.path());
  EXPECT_TRUE(connected) << connected.error().what;
  Qmp qmp{std::move(*connected)};  // closed before the QEMU waits for more
  return ask(qmp);
}

}  // namespace snowfabric::testing
