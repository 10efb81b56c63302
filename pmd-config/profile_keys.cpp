// SPDX-License-Identifier: BSD-3-Clause
#include "pmd-config/profile_keys.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <expected>
#include <functional>
#include <ranges>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace snowfabric {
namespace {

/// Sets one member from one node; the error is only "what is wrong", the caller adds where.
using Setter = std::function<std::expected<void, std::string>(Profile&, const toml::node&)>;
struct Key {
  std::string_view name;
  Setter set;
};

std::unexpected<std::string> wrong(std::string what) { return std::unexpected(std::move(what)); }

/// In all of these `member` is a member pointer or a function Profile& -> T&.
template <class Member>
Setter text(Member member) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    if (!node.is_string()) return wrong("must be a string");
    std::invoke(member, p) = node.as_string()->get();
    return {};
  };
}

template <class Member>
Setter flag(Member member) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    if (!node.is_boolean()) return wrong("must be true or false");
    std::invoke(member, p) = node.as_boolean()->get();
    return {};
  };
}

template <class Member>
Setter whole(Member member, std::int64_t low, std::int64_t high) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    if (!node.is_integer()) return wrong("must be a whole number");
    const std::int64_t value = node.as_integer()->get();
    if (value < low || value > high)
      return wrong(fmt::format("{} is not within {}..{}", value, low, high));
    auto& target = std::invoke(member, p);
    target = static_cast<std::remove_reference_t<decltype(target)>>(value);
    return {};
  };
}

template <class Member>
Setter gbps(Member member) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    if (!node.is_number()) return wrong("must be a number");
    const double value = node.value<double>().value_or(0);
    if (!(value >= 0.001 && value <= 1600))
      return wrong(fmt::format("{} is not within 0.001..1600", value));
    std::invoke(member, p) = value;
    return {};
  };
}

template <class Member>
Setter texts(Member member) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    const toml::array* array = node.as_array();
    if (array == nullptr) return wrong("must be an array of strings");
    std::vector<std::string> values;
    for (const toml::node& element : *array) {
      if (!element.is_string()) return wrong("must be an array of strings");
      values.push_back(element.as_string()->get());
    }
    std::invoke(member, p) = std::move(values);
    return {};
  };
}

/// `names` in the order of the enumerators.
template <class Member>
Setter one_of(Member member, const std::vector<std::string_view>& names) {
  return [=](Profile& p, const toml::node& node) -> std::expected<void, std::string> {
    auto& target = std::invoke(member, p);
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (node.value<std::string_view>() != names[i]) continue;
      target = static_cast<std::remove_reference_t<decltype(target)>>(i);
      return {};
    }
    return wrong(fmt::format("must be one of {}", fmt::join(names, ", ")));
  };
}

std::expected<void, std::string> set_capabilities(Profile& p, const toml::node& node) {
  const toml::array* array = node.as_array();
  if (array == nullptr) return wrong("must be an array of strings");
  p.capabilities = 0;
  for (const toml::node& element : *array) {
    const auto named = [&](const auto& known) {
      return element.value<std::string_view>() == known.first;
    };
    const auto found = std::ranges::find_if(kCapabilityNames, named);
    if (found == kCapabilityNames.end())
      return wrong(
          fmt::format("must be of {}", fmt::join(std::views::keys(kCapabilityNames), ", ")));
    p.capabilities |= found->second;
  }
  return {};
}

const std::vector<Key>& keys() {
  static const std::vector<Key> kKeys{
      {"base", [](Profile&, const toml::node&) { return std::expected<void, std::string>{}; }},
      {"name", text(&Profile::name)},
      {"description", text(&Profile::description)},
      {"device", one_of(&Profile::device, {"vdev", "pci"})},
      {"eal_args", texts(&Profile::eal_args)},
      {"hugepages_mb", whole(&Profile::hugepages_mb, 0, 1 << 20)},
      {"nb_rxd", whole(&Profile::nb_rxd, 32, 32768)},
      {"nb_txd", whole(&Profile::nb_txd, 32, 32768)},
      {"nb_mbufs", whole(&Profile::nb_mbufs, 128, 1 << 22)},
      {"mbuf_room_bytes", whole(&Profile::mbuf_room_bytes, 0, 65535)},
      {"mtu_by", one_of(&Profile::mtu_by, {"kernel", "ethdev", "none"})},
      {"mtu", whole(&Profile::mtu, 0, 16000)},
      {"max_mtu", whole(&Profile::max_mtu, 576, 65535)},
      {"multi_segs", flag(&Profile::multi_segs)},
      {"zero_copy", flag(&Profile::zero_copy)},
      {"returns_mbufs", flag(&Profile::returns_mbufs)},
      {"rx_interrupts", flag(&Profile::rx_interrupts)},
      {"multicast",
       one_of(&Profile::multicast, {"list", "socket", "allmulticast", "promiscuous", "software"})},
      {"capabilities", set_capabilities},
      {"link_wait_ms", whole(&Profile::link_wait_ms, 0, 600'000)},
      {"idle",
       one_of([](Profile& p) -> auto& { return p.idle.strategy; }, {"busy", "yield", "backoff"})},
      {"idle_pauses", whole([](Profile& p) -> auto& { return p.idle.nb_pauses; }, 0, 1'000'000)},
      {"idle_yields", whole([](Profile& p) -> auto& { return p.idle.nb_yields; }, 0, 1'000'000)},
      {"rate_initial_gbps", gbps(&Profile::rate_initial_gbps)},
      {"rate_max_gbps", gbps(&Profile::rate_max_gbps)},
      {"cannot", texts(&Profile::cannot)},
  };
  return kKeys;
}

}  // namespace

Result<void> apply_keys(const toml::table& table, Profile& profile) {
  for (const auto& [name, node] : table) {
    const auto where = [&] {
      return fmt::format("{}:{}: {}", profile.file.string(), node.source().begin.line, name.str());
    };
    const auto key = std::ranges::find(keys(), name.str(), &Key::name);
    if (key == keys().end())
      return fail(EINVAL, where() + ": unknown key (docs/operations.md lists them)");
    if (const auto set = key->set(profile, node); !set)
      return fail(EINVAL, fmt::format("{}: {}", where(), set.error()));
  }
  return {};
}

}  // namespace snowfabric
