// SPDX-License-Identifier: BSD-3-Clause
// sf-descriptor: shows what is in a VM descriptor, and puts a working set into it.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include "descriptor/descriptor.hpp"
#include "descriptor/page_list.hpp"
#include "fabric/base/hex.hpp"

namespace snowfabric {
namespace {

using Json = nlohmann::ordered_json;

const char* name_of(SectionType type) {
  switch (type) {
    case SectionType::kQemuConfig: return "qemu-config";
    case SectionType::kQemuRamHeader: return "qemu-ram-header";
    case SectionType::kQemuDevices: return "qemu-devices";
    case SectionType::kXenContext: return "xen-context";
    case SectionType::kXenDomain: return "xen-domain";
  }
  return "unknown";
}

std::string uuid_text(const std::array<std::uint8_t, 16>& uuid) {
  const std::string h = to_hex(std::as_bytes(std::span{uuid}));
  return fmt::format("{}-{}-{}-{}-{}", h.substr(0, 8), h.substr(8, 4), h.substr(12, 4),
                     h.substr(16, 4), h.substr(20));
}
std::string time_text(std::uint64_t unix_ns) {
  const auto seconds = static_cast<std::time_t>(unix_ns / 1'000'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:09}Z", fmt::gmtime(seconds), unix_ns % 1'000'000'000);
}
double percent(std::uint64_t part, std::uint64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

Json list_json(std::span<const PageRange> ranges, std::uint64_t image_pages) {
  std::uint64_t nb_pages = 0;
  for (const PageRange& range : ranges) nb_pages += range.nb_pages;
  return {
      {"pages", nb_pages}, {"ranges", ranges.size()}, {"percent", percent(nb_pages, image_pages)}};
}

Json parts_json(const Descriptor& d) {
  Json json = {{"spaces", Json::array()}, {"blocks", Json::array()}, {"sections", Json::array()}};
  for (const PageSpace& space : d.spaces)
    json["spaces"].push_back({{"space", space.space}, {"nb_pages", space.nb_pages}});
  for (const RamBlock& block : d.blocks)
    json["blocks"].push_back({{"name", block.name},
                              {"first_page", block.first_page},
                              {"nb_pages", block.nb_pages},
                              {"used_bytes", block.used_bytes}});
  for (const Section& section : d.sections) {
    const auto type = std::to_underlying(section.type);
    json["sections"].push_back({{"type", type},
                                {"name", name_of(section.type)},
                                {"optional", (type & kOptionalSection) != 0},
                                {"bytes", section.bytes.size()}});
  }
  return json;
}

/// All that is shown. Percentages of pages are of space 0, that of the file is of its bytes.
Json report(const Descriptor& d, const std::string& path, std::uint64_t file_bytes) {
  const std::uint64_t image_pages = d.spaces.front().nb_pages;
  const std::uint64_t image_bytes = image_pages * kPageSize;
  Json json = {{"file", path},
               {"descriptor_bytes", file_bytes},
               {"image_bytes", image_bytes},
               {"descriptor_percent", percent(file_bytes, image_bytes)},
               {"image_id", fmt::format("{:016x}", d.image_id)},
               {"epoch", d.epoch},
               {"group_mac", to_string(d.group)},
               {"sealed", !d.group_key.empty()},
               {"hash_root", d.hash_root.empty() ? Json{} : Json(to_hex(d.hash_root))},
               {"server_mac", d.server == MacAddr{} ? Json{} : Json(to_string(d.server))},
               {"frozen_at_ns", d.frozen_at_ns},
               {"frozen_at", time_text(d.frozen_at_ns)},
               {"parent_name", d.parent_name},
               {"parent_uuid", uuid_text(d.parent_uuid)}};
  json.update(parts_json(d));
  json["zero_pages"] = list_json(d.zero_pages, image_pages);
  json["absent_pages"] = list_json(d.absent_pages, image_pages);
  json["working_set"] = list_json(d.working_set, image_pages);
  json["machine_args"] = d.machine_args;
  return json;
}

/// Bytes of the VMM for a terminal: quotes and escapes what is not printable.
std::string printable(const Json& text) { return fmt::format("{:?}", text.get<std::string>()); }

std::string size_text(std::uint64_t bytes) {
  if (bytes < 1024 * 1024) return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024);
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1024 * 1024));
}

void print_parts(const Json& r) {
  for (const Json& space : r["spaces"])
    fmt::print("space {:<9}{} pages, {}\n", space["space"].get<unsigned>(),
               space["nb_pages"].get<std::uint64_t>(),
               size_text(space["nb_pages"].get<std::uint64_t>() * kPageSize));
  fmt::print("\n{:>10} {:>10} {:>14}  block\n", "first page", "pages", "used bytes");
  for (const Json& block : r["blocks"])
    fmt::print("{:>10} {:>10} {:>14}  {}\n", block["first_page"].get<std::uint64_t>(),
               block["nb_pages"].get<std::uint64_t>(), block["used_bytes"].get<std::uint64_t>(),
               printable(block["name"]));
  fmt::print("\n{:>10} {:>10}  section\n", "type", "bytes");
  for (const Json& section : r["sections"])
    fmt::print("{:>#10x} {:>10}  {}{}\n", section["type"].get<std::uint32_t>(),
               section["bytes"].get<std::uint64_t>(), section["name"].get<std::string>(),
               section["optional"].get<bool>() ? ", optional" : "");
  fmt::print("\n{:>10} {:>10} {:>8}  list\n", "pages", "ranges", "of image");
  for (const char* list : {"zero_pages", "absent_pages", "working_set"})
    fmt::print("{:>10} {:>10} {:>7.2f}%  {}\n", r[list]["pages"].get<std::uint64_t>(),
               r[list]["ranges"].get<std::uint64_t>(), r[list]["percent"].get<double>(), list);
}

void print_table(const Json& r) {
  const auto line = [](const char* name, const auto& value) {
    fmt::print("{:<15}{}\n", name, value);
  };
  line("image", r["image_id"].get<std::string>());
  line("epoch", r["epoch"].get<std::uint32_t>());
  line("frozen at", r["frozen_at"].get<std::string>());
  line("parent", printable(r["parent_name"]));
  line("parent uuid", r["parent_uuid"].get<std::string>());
  line("group", r["group_mac"].get<std::string>());
  line("frames", r["sealed"].get<bool>() ? "sealed by the key in here" : "in the clear");
  line("server", r["server_mac"].is_null() ? "unknown" : r["server_mac"].get<std::string>());
  line("descriptor", fmt::format("{}, {:.3f}% of guest memory",
                                 size_text(r["descriptor_bytes"].get<std::uint64_t>()),
                                 r["descriptor_percent"].get<double>()));
  print_parts(r);
  fmt::print("\nmachine\n");
  for (const Json& arg : r["machine_args"]) fmt::print("  {}\n", printable(arg));
}

Result<void> show(const std::string& path, bool as_json) {
  const auto descriptor = read_descriptor(path);
  if (!descriptor) return std::unexpected(descriptor.error());
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) return fail(errno, fmt::format("stat({})", path));
  const Json json = report(*descriptor, path, static_cast<std::uint64_t>(st.st_size));
  if (as_json)  // names are bytes, JSON is UTF-8
    fmt::print("{}\n", json.dump(2, ' ', false, Json::error_handler_t::replace));
  else
    print_table(json);
  if (std::fflush(stdout) != 0) return fail(errno, "write(stdout)");
  return {};
}

Result<void> add_working_set(const std::string& path, const std::string& record) {
  auto descriptor = read_descriptor(path);
  if (!descriptor) return std::unexpected(descriptor.error());
  auto pages = read_page_list(record, descriptor->spaces.front().nb_pages);
  if (!pages) return std::unexpected(pages.error());
  descriptor->working_set = std::move(*pages);
  return write_descriptor(*descriptor, path);
}

int run(int argc, char** argv) {
  CLI::App cli{"What is in a VM descriptor.", "sf-descriptor"};
  std::string path, record;
  bool as_json = false;
  cli.set_version_flag("--version", SNOWFABRIC_VERSION);
  cli.require_subcommand(1);
  CLI::App* showing = cli.add_subcommand("show", "Print one descriptor");
  CLI::App* adding = cli.add_subcommand(
      "add-working-set",
      "Put the pages that memtap recorded into a descriptor, as its working set");
  for (CLI::App* command : {showing, adding})
    command->add_option("FILE", path, "the descriptor")->required();
  adding->add_option("RECORD", record, "what memtap-dpdk --record wrote")->required();
  showing->add_flag("--json", as_json, "as one JSON object");
  cli.footer("Exit codes: 0 done, 1 not a good descriptor or record, 2 wrong arguments.");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : 2;
  }
  const auto done = showing->parsed() ? show(path, as_json) : add_working_set(path, record);
  if (done) return 0;
  fmt::print(stderr, "sf-descriptor: {}: {}\n", done.error().what,
             std::strerror(done.error().errnum));
  return 1;
}

}  // namespace
}  // namespace snowfabric

int main(int argc, char** argv) try {
  return snowfabric::run(argc, argv);
} catch (const std::exception& error) {  // a full disk behind stdout, no memory
  std::fputs("sf-descriptor: ", stderr);
  std::fputs(error.what(), stderr);
  std::fputs("\n", stderr);
  return 1;
}
