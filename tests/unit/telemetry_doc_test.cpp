// SPDX-License-Identifier: BSD-3-Clause
// A counter's name is API: docs/telemetry.md lists what is published, no more and no less.
#include <array>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "fabric/stats.hpp"
#include "memserver-dpdk/port_stats.hpp"
#include "memtap-dpdk/guest_adapter.hpp"
#include "memtap-dpdk/host.hpp"
#include "memtap-dpdk/port_stats.hpp"

namespace snowfabric {
namespace {

constexpr const char* kDocument = SNOWFABRIC_SOURCE_DIR "/docs/telemetry.md";

/// One row of a table: `name`, kind, unit.
struct Row {
  std::string name, kind, unit;
  bool operator==(const Row&) const = default;
};
using Rows = std::vector<Row>;

/// The rows of the document's tables by the section they stand in.
const std::map<std::string, Rows>& document() {
  static const auto kSections = [] {
    std::map<std::string, Rows> sections;
    const std::regex row{R"(\| `([^`]*)` \| ([^|]*) \| ([^|]*) \| .*\S.* \|)"};
    std::ifstream file{kDocument};
    std::string section;
    for (std::string line; std::getline(file, line);) {
      std::smatch cell;
      if (line.starts_with("## ")) section = line.substr(3);
      if (std::regex_match(line, cell, row))
        sections[section].push_back({cell[1], cell[2], cell[3]});
    }
    return sections;
  }();
  return kSections;
}

std::vector<std::string> documented(const std::string& section) {
  const auto rows = document().find(section);
  std::vector<std::string> names;
  if (rows != document().end())
    for (const Row& row : rows->second) names.push_back(row.name);
  return names;
}

/// Gauges are those whose help text ends in "now".
template <class Stats, std::size_t N>
std::set<std::string> gauges(const std::array<CounterInfo<Stats>, N>& infos) {
  std::set<std::string> names;
  for (const auto& info : infos)
    if (info.help.ends_with(" now")) names.emplace(info.name);
  return names;
}

template <class Stats, std::size_t N>
std::vector<std::string> published(const std::array<CounterInfo<Stats>, N>& infos) {
  std::vector<std::string> names;
  for (const auto& info : infos) names.emplace_back(info.name);
  return names;
}

template <class Stats, std::size_t N>
void expect_same(const std::string& section, const std::array<CounterInfo<Stats>, N>& infos) {
  EXPECT_EQ(documented(section), published(infos)) << section;
  std::set<std::string> said_gauges;
  if (const auto rows = document().find(section); rows != document().end())
    for (const Row& row : rows->second)
      if (row.kind == "gauge") said_gauges.insert(row.name);
  EXPECT_EQ(said_gauges, gauges(infos)) << section;
}

std::vector<std::string> drop_names() {
  std::vector<std::string> names;
  for (std::size_t i = 1; i < wire::kDropNames.size(); ++i)  // 0 is no drop
    names.push_back("rx_drop_" + std::string{wire::kDropNames[i]});
  return names;
}

/// What pmd-config reads from the device; both processes publish it.
const std::vector<std::string> kDeviceNames{"rx_kernel_drops", "mbufs_in_use"};

/// What pmd-config knows of the sandbox; likewise.
const std::vector<std::string> kSandboxNames{"sandboxed", "forbidden_calls"};

/// Behind the engine's, of each image.
const std::vector<std::string> kParentNames{"aside_pages"};

TEST(TelemetryDocument, ListsEveryPublishedNameInTheOrderOfTheReply) {
  expect_same("Memserver: port", kServerPortCounters);
  expect_same("Memserver: engine", kServerCounters);
  expect_same("Memtap: port", kClientPortCounters);
  expect_same("Memtap: engine", kClientCounters);
  expect_same("Memtap: host", kHostCounters);
  expect_same("Memtap: guests", kGuestCounters);
  EXPECT_EQ(documented("Dropped frames, both processes"), drop_names());
  EXPECT_EQ(documented("From the device, both processes"), kDeviceNames);
  EXPECT_EQ(documented("The sandbox, both processes"), kSandboxNames);
  EXPECT_EQ(documented("Memserver: parent"), kParentNames);
}

TEST(TelemetryDocument, HasNoTableThatNobodyPublishes) {
  std::set<std::string> sections;
  for (const auto& [section, rows] : document()) sections.insert(section);
  EXPECT_EQ(sections, (std::set<std::string>{
                          "Dropped frames, both processes", "From the device, both processes",
                          "The sandbox, both processes", "Memserver: port", "Memserver: engine",
                          "Memserver: parent", "Memtap: port", "Memtap: engine", "Memtap: host",
                          "Memtap: guests"}));
}

TEST(TelemetryDocument, SaysOfEveryNameWhetherItGrowsAndInWhatUnit) {
  for (const auto& [section, rows] : document())
    for (const Row& row : rows) {
      EXPECT_TRUE(row.kind == "counter" || row.kind == "gauge") << row.name << ": " << row.kind;
      EXPECT_FALSE(row.unit.empty()) << row.name;
    }
}

TEST(TelemetryDocument, EveryRowOfATableIsReadByThisTest) {
  std::ifstream file{kDocument};
  std::size_t nb_lines = 0, nb_rows = 0;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("| `")) ++nb_lines;
  for (const auto& [section, rows] : document()) nb_rows += rows.size();
  EXPECT_EQ(nb_rows, nb_lines) << "a row is not `name` | kind | unit | meaning";
}

/// Two counters of one name would be one key of the reply.
TEST(Telemetry, NoNameIsPublishedTwiceByOneProcess) {
  const auto expect_unique = [](std::initializer_list<std::vector<std::string>> lists) {
    std::set<std::string> seen;
    for (const auto& names : lists)
      for (const std::string& name : names) EXPECT_TRUE(seen.insert(name).second) << name;
  };
  expect_unique(
      {published(kServerPortCounters), drop_names(), kDeviceNames, published(kServerCounters)});
  expect_unique({published(kClientPortCounters), drop_names(), kDeviceNames,
                 published(kClientCounters), published(kHostCounters), published(kGuestCounters)});
}

TEST(Telemetry, NamesAreLowerCaseWithUnderscoresAndHaveHelp) {
  const std::regex form{"[a-z][a-z0-9]*(_[a-z0-9]+)*"};
  const auto expect_form = [&](const auto& infos) {
    for (const auto& info : infos) {
      EXPECT_TRUE(std::regex_match(std::string{info.name}, form)) << info.name;
      EXPECT_FALSE(info.help.empty()) << info.name;
    }
  };
  expect_form(kServerPortCounters);
  expect_form(kServerCounters);
  expect_form(kClientPortCounters);
  expect_form(kClientCounters);
  expect_form(kHostCounters);
  expect_form(kGuestCounters);
}

/// A member named twice in a table would hide the one it stands for.
TEST(Telemetry, EveryCounterOfAStructHasOneName) {
  const auto expect_distinct = [](const auto& infos) {
    for (std::size_t i = 0; i < infos.size(); ++i)
      for (std::size_t j = i + 1; j < infos.size(); ++j)
        EXPECT_NE(infos[i].member, infos[j].member) << infos[i].name << ", " << infos[j].name;
  };
  expect_distinct(kServerPortCounters);
  expect_distinct(kServerCounters);
  expect_distinct(kClientPortCounters);
  expect_distinct(kClientCounters);
  expect_distinct(kHostCounters);
  expect_distinct(kGuestCounters);
}

}  // namespace
}  // namespace snowfabric
