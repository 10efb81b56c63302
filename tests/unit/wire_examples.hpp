// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace snowfabric::test {

/// One example of docs/wire-format.md: what its text says, and its bytes. Throws on a block that
/// does not read as section 5 of the page describes.
struct WireExample {
  std::string name;
  std::multimap<std::string, std::string> fields;
  std::vector<std::byte> bytes;

  [[nodiscard]] std::string text(const std::string& field) const {
    const auto it = fields.find(field);
    if (it == fields.end()) throw std::runtime_error{name + " lacks " + field};
    return it->second;
  }
  [[nodiscard]] std::uint64_t number(const std::string& field) const {
    return std::stoull(text(field), nullptr, 0);
  }
  [[nodiscard]] std::vector<std::string> all(const std::string& field) const {
    std::vector<std::string> values;
    for (auto [it, end] = fields.equal_range(field); it != end; ++it) values.push_back(it->second);
    return values;
  }

  /// A row "0010  de ad ..."; the rows that a "*" stands for are put in before it.
  void add_row(const std::string& line, bool& repeat) {
    std::istringstream words{line};
    std::string word;
    words >> word;
    const std::size_t offset = std::stoull(word, nullptr, 16);
    while (repeat && bytes.size() < offset)
      for (std::size_t i = 0; i < 16; ++i) bytes.push_back(bytes[bytes.size() - 16]);
    repeat = false;
    if (bytes.size() != offset) throw std::runtime_error{name + ": row " + word + " out of place"};
    while (words >> word) bytes.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
  }
  void add_line(const std::string& line, bool& repeat) {
    if (line == "*") {
      repeat = true;
    } else if (line.find('=') == std::string::npos) {
      add_row(line, repeat);
    } else {
      std::istringstream words{line};
      for (std::string word; words >> word;) {
        const std::size_t equals = word.find('=');
        fields.emplace(word.substr(0, equals), word.substr(equals + 1));
      }
    }
  }
};

inline void PrintTo(const WireExample& example, std::ostream* out) { *out << example.name; }

/// @param kind  of the blocks: "frame" or "sealed"
inline std::vector<WireExample> read_wire_examples(const std::string& path,
                                                   const std::string& kind = "frame") {
  const std::string fence = "```" + kind + " ";
  std::ifstream file{path};
  std::vector<WireExample> examples;
  bool inside = false, repeat = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(fence)) {
      examples.push_back({.name = line.substr(fence.size()), .fields = {}, .bytes = {}});
      inside = true;
    } else if (line == "```") {
      inside = false;
    } else if (inside) {
      examples.back().add_line(line, repeat);
    }
  }
  return examples;
}

}  // namespace snowfabric::test
