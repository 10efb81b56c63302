// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/process.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>

#include <fmt/format.h>

namespace snowfabric {

std::vector<std::string> strings_of(pid_t pid, std::string_view what) {
  std::ifstream file{fmt::format("/proc/{}/{}", pid, what), std::ios::binary};
  const std::string all{std::istreambuf_iterator<char>{file}, {}};
  std::vector<std::string> strings;
  for (std::size_t at = 0; at < all.size();) {
    const std::size_t end = std::min(all.find('\0', at), all.size());
    strings.push_back(all.substr(at, end - at));
    at = end + 1;
  }
  return strings;
}

std::string variable_of(pid_t pid, std::string_view name) {
  for (const std::string& variable : strings_of(pid, "environ"))
    if (variable.starts_with(name) && variable.substr(name.size()).starts_with('='))
      return variable.substr(name.size() + 1);
  return {};
}

}  // namespace snowfabric
