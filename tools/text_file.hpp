// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdio>
#include <fstream>
#include <string>

#include <fmt/format.h>

namespace snowfabric {

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
