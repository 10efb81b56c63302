// SPDX-License-Identifier: BSD-3-Clause
#include "memserver-dpdk/parent_checks.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <initializer_list>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace snowfabric {
namespace {

using Json = Qmp::Json;

/// Another process, or a device by DMA.
bool writes_past_qemu(std::string_view type) {
  constexpr std::array<std::string_view, 5> kKinds{"vhost-user", "vhost-vdpa", "vfio",
                                                   "x-pci-proxy-dev", "ivshmem"};
  return std::ranges::any_of(
      kKinds, [type](std::string_view kind) { return type.find(kind) != type.npos; });
}

/// @return the first kind of these that the VM has; empty: none
Result<std::string> memory_device(Qmp& qmp, std::initializer_list<std::string_view> kinds) {
  const auto devices = qmp.execute("query-memory-devices");
  if (!devices) return std::unexpected(devices.error());
  for (const Json& device : *devices)
    if (std::string type = text_of(device, "type"); std::ranges::find(kinds, type) != kinds.end())
      return type;
  return std::string{};
}

std::unexpected<Error> foreign_writer(std::string_view what) {
  return fail(ENOTSUP, fmt::format("the VM's {} writes to its RAM past QEMU, which no freeze can "
                                   "hold up: take it away first",
                                   what));
}

}  // namespace

Result<void> refuse_writable_disks(Qmp& qmp) {
  const auto blocks = qmp.execute("query-block");
  if (!blocks) return std::unexpected(blocks.error());
  for (const Json& device : *blocks) {
    const auto inserted = device.is_object() ? device.find("inserted") : device.end();
    if (inserted == device.end() || !inserted->is_object()) continue;
    const auto read_only = inserted->find("ro");
    if (read_only != inserted->end() && read_only->is_boolean() && read_only->get<bool>()) continue;
    return fail(EROFS,
                fmt::format("the parent's disk {} ({}) is writable, and disks are not frozen "
                            "yet: run it from RAM or attach the disk read-only",
                            text_of(device, "device"), text_of(*inserted, "file")));
  }
  const auto disk = memory_device(qmp, {"nvdimm", "virtio-pmem"});
  if (!disk) return std::unexpected(disk.error());
  if (disk->empty()) return {};
  return fail(EROFS, fmt::format("the parent's {} is a disk, and no disk in memory is frozen yet: "
                                 "take it away",
                                 *disk));
}

Result<void> refuse_foreign_writers(Qmp& qmp) {
  for (const char* path : {"/machine/peripheral", "/machine/peripheral-anon", "/objects"}) {
    const auto children = qmp.execute("qom-list", {{"path", path}});
    if (!children) return std::unexpected(children.error());
    for (const Json& child : *children)
      if (const std::string type = text_of(child, "type"); writes_past_qemu(type))
        return foreign_writer(fmt::format("device {} ({})", text_of(child, "name"), type));
  }
  // Back ends of network cards are no objects, and no other command names their types.
  const auto networks = qmp.execute("human-monitor-command", {{"command-line", "info network"}});
  if (!networks) return std::unexpected(networks.error());
  const std::string text = networks->is_string() ? networks->get<std::string>() : std::string{};
  for (const std::string_view type : {"type=vhost-user", "type=vhost-vdpa"})
    if (text.find(type) != text.npos) return foreign_writer(fmt::format("network card ({})", type));
  return {};
}

Result<void> refuse_returned_memory(Qmp& qmp) {
  constexpr const char* kWhy = "takes pages out of RAM behind the library's back";
  const auto balloon = qmp.execute("query-balloon");
  if (balloon) return fail(ENOTSUP, fmt::format("the VM's balloon {}", kWhy));
  if (balloon.error().errnum != EREMOTEIO)  // that is QEMU's way to say that there is none
    return std::unexpected(balloon.error());
  const auto device = memory_device(qmp, {"virtio-mem"});
  if (!device) return std::unexpected(device.error());
  if (device->empty()) return {};
  return fail(ENOTSUP, fmt::format("the VM's {} device {}", *device, kWhy));
}

Result<void> check_only_backend(Qmp& qmp, std::uint64_t nb_bytes) {
  const auto backends = qmp.execute("query-memdev");
  if (!backends) return std::unexpected(backends.error());
  std::size_t nb_shared = 0;
  for (const Json& backend : *backends) {
    const bool shared = backend.is_object() && backend.value("share", Json{}) == true;
    const std::uint64_t size = number_of(backend, "size");
    nb_shared += shared ? 1 : 0;
    // QEMU sends the largest block first.
    if (shared ? size != nb_bytes : size >= nb_bytes)
      return fail(ENOTSUP, fmt::format("the VM's memory backend {} has {} bytes, its shim handed "
                                       "over {}: is all of its RAM one shared memory backend?",
                                       text_of(backend, "id"), size, nb_bytes));
  }
  if (nb_shared == 1) return {};
  return fail(ENOTSUP,
              fmt::format("the VM's RAM is in {} shared memory backends, not in one", nb_shared));
}

}  // namespace snowfabric
