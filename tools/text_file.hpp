// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdio>
#include <fstream>
#include <string>

#include <fmt/format.h>

namespace snowfabric {

/// Before long work whose result goes there. A new file is empty then, one that is there stays.
/// @param path  as below
[[nodiscard]] inline bool can_write(const char* program, const std::string& path) {
  if (path.empty() || std::ofstream{path, std::ios::app}) return true;
  fmt::print(stderr, "{}: cannot write {}\n", program, path);
  return false;
}

/// For a tool's option that names a file, or is empty.
/// @param program  that says on stderr when it cannot be written
/// @return whether it could be
[[nodiscard]] inline bool write_text(const char* program, const std::string& path,
                                     const std::string& text) {
  if (path.empty()) return true;
  std::ofstream file{path};
  file << text;
  file.close();
  if (!file.fail()) return true;
  fmt::print(stderr, "{}: cannot write {}\n", program, path);
  return false;
}

}  // namespace snowfabric
