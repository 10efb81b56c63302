// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/shell.hpp"

#include <elf.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "xen-glue/domain_pager.hpp"

namespace snowfabric::xen {
namespace {

constexpr std::uint64_t kKib = kPageSize / 1024;  // a page
constexpr std::uint64_t kPagesPerMib = 256;
constexpr std::uint64_t kBatchPages = 1024;

/// The whole file of shell_kernel(): its two segments are the note and the code behind it.
struct Kernel {
  Elf64_Ehdr header;
  Elf64_Phdr load, note_segment;
  struct {
    Elf64_Nhdr header;
    char name[4];
    std::uint32_t entry;
  } note;
  std::uint8_t code[4];
};
constexpr std::uint64_t kLoadAddress = 0x100000;
constexpr std::uint32_t kPhys32Entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY

Elf64_Phdr segment(std::uint32_t type, std::uint64_t offset, std::uint64_t size) {
  Elf64_Phdr header{};
  header.p_type = type;
  header.p_flags = PF_R | PF_X;
  header.p_offset = offset;
  header.p_vaddr = header.p_paddr = kLoadAddress + offset;
  header.p_filesz = header.p_memsz = size;
  header.p_align = type == PT_LOAD ? kPageSize : alignof(std::uint32_t);
  return header;
}

/// Evicts a batch but for what of it is `spared`.
Result<void> evict(DomainPager& pager, PageRange batch, PageRange spared, std::vector<Gfn>& kept) {
  const std::uint64_t begin = batch.first.value, end = begin + batch.nb_pages;
  const std::uint64_t from = std::clamp(spared.first.value, begin, end);
  const std::uint64_t to = std::clamp(spared.first.value + spared.nb_pages, from, end);
  if (auto ok = pager.evict({batch.first, static_cast<std::uint32_t>(from - begin)}, kept); !ok)
    return ok;
  return pager.evict({Gfn{to}, static_cast<std::uint32_t>(end - to)}, kept);
}

/// Takes a batch of the parent's pages away from the domain again, once it has had them.
Result<void> add_evicted(DomainPager& pager, PageRange batch, PageRange spared) {
  std::vector<Gfn> pages;
  for (std::uint64_t i = 0; i < batch.nb_pages; ++i)
    if (batch.first.value + i >= kShellPages) pages.push_back({batch.first.value + i});
  if (!pages.empty())
    if (auto ok = pager.domain().populate(pages); !ok) return ok;
  std::vector<Gfn> kept;
  if (auto ok = evict(pager, batch, spared, kept); !ok) return ok;
  if (kept.empty()) return {};
  return fail(EBUSY, fmt::format("evict gfn {:#x} of {}, which has never run", kept[0].value,
                                 to_string(pager.domain().id())));
}

Result<void> announce_size(const Domain& domain, std::uint64_t nb_pages,
                           const DomainState& parent) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  const std::uint64_t nb_special = info->nb_pages - std::min(info->nb_pages, kShellPages);
  constexpr std::uint64_t kSlack = kPagesPerMib;  // as libxl adds. Source: LIBXL_MAXMEM_CONSTANT
  const int errnum = domain.calls().set_max_pages(domain.id(), nb_pages + nb_special + kSlack);
  if (auto ok = domain.checked(errnum, "set the most memory"); !ok) return ok;
  if (auto ok = domain.store_write("memory/static-max", std::to_string(nb_pages * kKib)); !ok)
    return ok;
  // What the guest's balloon is told must not change by the fork, or it would give pages back.
  return domain.store_write("memory/target", std::to_string(parent.target_kib));
}

}  // namespace

std::vector<std::byte> shell_kernel() {
  Kernel kernel{};
  std::memcpy(kernel.header.e_ident, ELFMAG, SELFMAG);
  kernel.header.e_ident[EI_CLASS] = ELFCLASS64;
  kernel.header.e_ident[EI_DATA] = ELFDATA2LSB;
  kernel.header.e_ident[EI_VERSION] = EV_CURRENT;
  kernel.header.e_type = ET_EXEC;
  kernel.header.e_machine = EM_X86_64;
  kernel.header.e_version = EV_CURRENT;
  kernel.header.e_entry = kLoadAddress + offsetof(Kernel, code);
  kernel.header.e_phoff = offsetof(Kernel, load);
  kernel.header.e_ehsize = sizeof kernel.header;
  kernel.header.e_phentsize = sizeof(Elf64_Phdr);
  kernel.header.e_phnum = 2;
  kernel.load = segment(PT_LOAD, 0, sizeof kernel);
  kernel.note_segment = segment(PT_NOTE, offsetof(Kernel, note), sizeof kernel.note);
  kernel.note.header = {.n_namesz = sizeof kernel.note.name,
                        .n_descsz = sizeof kernel.note.entry,
                        .n_type = kPhys32Entry};
  std::memcpy(kernel.note.name, "Xen", sizeof kernel.note.name);
  kernel.note.entry = static_cast<std::uint32_t>(kernel.header.e_entry);
  constexpr std::uint8_t kHaltForEver[]{0xfa, 0xf4, 0xeb, 0xfd};  // cli; hlt; jmp to the hlt
  std::memcpy(kernel.code, kHaltForEver, sizeof kernel.code);
  const auto bytes = std::as_bytes(std::span{&kernel, 1});
  return {bytes.begin(), bytes.end()};
}

std::string shell_config(const std::string& name, const std::string& kernel, std::uint64_t nb_pages,
                         const DomainState& parent) {
  // Source: libxl_get_required_shadow_memory() of tools/libs/light/libxl_utils.c.
  const std::uint64_t mib = (nb_pages + kPagesPerMib - 1) / kPagesPerMib;
  const std::uint64_t tables_kib = 4 * (256 * parent.nb_vcpus + 2 * mib);
  return fmt::format(
      "name = \"{}\"\n"
      "type = \"pvh\"\n"
      "kernel = \"{}\"\n"
      "memory = {}\n"
      "vcpus = {}\n"
      "shadow_memory = {}\n"
      "on_crash = \"preserve\"\n"
      "on_reboot = \"preserve\"\n"
      "on_poweroff = \"preserve\"\n",
      name, kernel, kShellPages / kPagesPerMib, parent.nb_vcpus, (tables_kib + 1023) / 1024);
}

Result<void> make_shell(Domain domain, std::uint64_t nb_pages, const DomainState& parent,
                        const std::function<void(std::uint64_t)>& progress) {
  if (auto ok = announce_size(domain, nb_pages, parent); !ok) return ok;
  {
    const auto pager = DomainPager::enable(domain);
    if (!pager) return std::unexpected(pager.error());
    for (std::uint64_t done = 0; done < nb_pages;) {
      const auto nb_batch = static_cast<std::uint32_t>(std::min(kBatchPages, nb_pages - done));
      if (auto ok =
              add_evicted(**pager, {Gfn{done}, nb_batch}, parent.bitmap.value_or(PageRange{}));
          !ok)
        return ok;
      done += nb_batch;
      progress(done);
    }
  }
  if (auto ok = domain.set_tsc(parent.tsc); !ok) return ok;
  // Reads no guest memory, so it works with all of it evicted.
  return domain.set_context(parent.context);
}

}  // namespace snowfabric::xen
