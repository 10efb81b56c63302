// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/paging_hypercalls.hpp"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>

// Xen's headers declare no C linkage of their own.
extern "C" {
#include <xencall.h>
#include <xenctrl.h>

#include <xen/hvm/dm_op.h>
}

namespace snowfabric::xen {
namespace {

int errno_of(int result) noexcept { return result < 0 ? errno : 0; }

std::uint64_t address(const void* pointer) noexcept {
  return reinterpret_cast<std::uint64_t>(pointer);
}

xen_mem_paging_op_t operation(unsigned what, DomId domain, Gfn page,
                              const std::uint8_t* bytes) noexcept {
  return {.op = static_cast<std::uint8_t>(what),
          .domain = static_cast<domid_t>(domain),
          .buffer = {bytes},
          .gfn = page.value};
}

}  // namespace

/// What Xen reads and writes: memory that Linux neither moves nor takes away meanwhile.
struct PagingHypercalls::Shared {
  std::uint8_t page[kPageSize];
  multicall_entry_t calls[2 * kMost];
  xen_mem_paging_op_t ops[2 * kMost];
  xen_dm_op asks[kMost];
  xen_dm_op_buf ask_buffers[kMost];

  static constexpr std::size_t nb_pages() { return (sizeof(Shared) + kPageSize - 1) / kPageSize; }
};

PagingHypercalls::PagingHypercalls(xencall_handle* calls, void* memory) noexcept
    : calls_{calls}, shared_{new(memory) Shared{}} {}

std::unique_ptr<PagingHypercalls> PagingHypercalls::make() {
  xencall_handle* calls = xencall_open(nullptr, 0);
  if (calls == nullptr) return nullptr;
  if (void* memory = xencall_alloc_buffer_pages(calls, Shared::nb_pages()))
    return std::unique_ptr<PagingHypercalls>{new PagingHypercalls{calls, memory}};
  xencall_close(calls);
  errno = ENOMEM;
  return nullptr;
}

PagingHypercalls::~PagingHypercalls() {
  xencall_free_buffer_pages(calls_, shared_, Shared::nb_pages());
  xencall_close(calls_);
}

void PagingHypercalls::evict(DomId domain, std::span<const Gfn> pages,
                             std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    add(2 * i, XENMEM_paging_op_nominate, domain, pages[i]);
    add(2 * i + 1, XENMEM_paging_op_evict, domain, pages[i]);
  }
  const int errnum = call(2 * pages.size());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    errors[i] = errnum != 0 ? errnum : error(2 * i);
    if (errors[i] == 0) errors[i] = error(2 * i + 1);
  }
}

void PagingHypercalls::nominate(DomId domain, std::span<const Gfn> pages,
                                std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i)
    add(i, XENMEM_paging_op_nominate, domain, pages[i]);
  const int errnum = call(pages.size());
  for (std::size_t i = 0; i < pages.size(); ++i) errors[i] = errnum != 0 ? errnum : error(i);
}

/// Xen has no call that takes a nomination back. Who sets a page's type has Xen ask for it first,
/// if it is nominated, and what was asked for can be loaded; it keeps its bytes. Source:
/// set_mem_type() of xen/arch/x86/hvm/dm.c, prepare() of xen/arch/x86/mm/mem_paging.c.
void PagingHypercalls::free(DomId domain, std::span<const Gfn> pages,
                            std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    add_ask(2 * i, domain, pages[i]);
    add(2 * i + 1, XENMEM_paging_op_prep, domain, pages[i]);
    shared_->ops[2 * i + 1].buffer = {shared_->page};
  }
  const int errnum = call(2 * pages.size());
  for (std::size_t i = 0; i < pages.size(); ++i) {
    errors[i] = errnum != 0 ? errnum : error(2 * i);
    if (errors[i] == EAGAIN && error(2 * i + 1) != ENOENT) errors[i] = error(2 * i + 1);
  }
}

int PagingHypercalls::load(DomId domain, Gfn page, const std::byte* bytes) noexcept {
  std::memcpy(shared_->page, bytes, kPageSize);
  shared_->ops[0] = operation(XENMEM_paging_op_prep, domain, page, shared_->page);
  const int errnum =
      errno_of(xencall2(calls_, __HYPERVISOR_memory_op, XENMEM_paging_op, address(shared_->ops)));
  // It is being destroyed. Source: rcu_lock_live_remote_domain_by_id() of xen/common/domain.c.
  return errnum == EINVAL ? ESRCH : errnum;
}

void PagingHypercalls::add(std::size_t at, unsigned what, DomId domain, Gfn page) noexcept {
  shared_->ops[at] = operation(what, domain, page, nullptr);
  shared_->calls[at] = {.op = __HYPERVISOR_memory_op,
                        .result = 0,
                        .args = {XENMEM_paging_op, address(&shared_->ops[at])}};
}

void PagingHypercalls::add_ask(std::size_t at, DomId domain, Gfn page) noexcept {
  xen_dm_op& ask = shared_->asks[at / 2];
  ask = {};
  ask.op = XEN_DMOP_set_mem_type;
  ask.u.set_mem_type.mem_type = HVMMEM_ram_rw;
  ask.u.set_mem_type.nr = 1;
  ask.u.set_mem_type.first_pfn = page.value;
  xen_dm_op_buf& buffer = shared_->ask_buffers[at / 2];
  buffer.h.p = &ask;
  buffer.size = sizeof ask;
  shared_->calls[at] = {.op = __HYPERVISOR_dm_op,
                        .result = 0,
                        .args = {static_cast<std::uint16_t>(domain), 1, address(&buffer)}};
}

int PagingHypercalls::call(std::size_t nb_calls) noexcept {
  return errno_of(xencall2(calls_, __HYPERVISOR_multicall, address(shared_->calls), nb_calls));
}

/// Of a call. Xen's own numbers are those of Linux. @return 0 or errno
int PagingHypercalls::error(std::size_t at) const noexcept {
  return static_cast<int>(-static_cast<long>(shared_->calls[at].result));
}

}  // namespace snowfabric::xen
