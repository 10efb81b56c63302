// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/libxen_calls.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sys/mman.h>

#include "xen-glue/paging_hypercalls.hpp"
#include "xen-glue/paging_ring.hpp"

// Xen's headers declare no C linkage of their own.
extern "C" {
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xenstore.h>

#include <xen/hvm/params.h>
#include <xen/hvm/save.h>
#include <xen/vm_event.h>
}

namespace snowfabric::xen {
namespace {

static_assert(kRingSlotBytes == sizeof(vm_event_request_t) &&
              kRingSlotBytes == sizeof(vm_event_response_t));
static_assert(kRingSlots == __CONST_RING_SIZE(vm_event, XC_PAGE_SIZE));
static_assert(kRingSlotsAt == offsetof(vm_event_sring_t, ring));
static_assert(offsetof(RingSlot, gfn) == offsetof(vm_event_request_t, u.mem_paging.gfn) &&
              offsetof(RingSlot, vcpu) == offsetof(vm_event_request_t, vcpu_id) &&
              offsetof(RingSlot, reason) == offsetof(vm_event_request_t, reason) &&
              offsetof(RingSlot, paging_flags) == offsetof(vm_event_request_t, u.mem_paging.flags));
static_assert(kVmEventVersion == VM_EVENT_INTERFACE_VERSION &&
              kVmEventPaging == VM_EVENT_REASON_MEM_PAGING &&
              kVcpuPaused == VM_EVENT_FLAG_VCPU_PAUSED && kDropPage == MEM_PAGING_DROP_PAGE);
static_assert(sizeof(xen_pfn_t) == sizeof(Gfn));

/// Calls deleters of C handles.
template <auto Close>
struct Closer {
  template <class Handle>
  void operator()(Handle* handle) const noexcept {
    Close(handle);
  }
};
using Control = std::unique_ptr<xc_interface, Closer<xc_interface_close>>;
using ForeignMemory = std::unique_ptr<xenforeignmemory_handle, Closer<xenforeignmemory_close>>;
using Store = std::unique_ptr<xs_handle, Closer<xs_close>>;
using EventChannels = std::unique_ptr<xenevtchn_handle, Closer<xenevtchn_close>>;

constexpr std::uint32_t raw(DomId domain) noexcept { return static_cast<std::uint16_t>(domain); }

/// What a call that returns a negative number for an error reported.
int errno_of(long result) noexcept { return result < 0 ? errno : 0; }

class LibxenPort final : public EventPort {
 public:
  LibxenPort(EventChannels channels, evtchn_port_t port) noexcept
      : channels_{std::move(channels)}, port_{port} {}
  // The port is unbound when its handle is closed.
  [[nodiscard]] int fd() const noexcept override { return xenevtchn_fd(channels_.get()); }
  void acknowledge() noexcept override {
    if (xenevtchn_pending(channels_.get()) >= 0) xenevtchn_unmask(channels_.get(), port_);
  }
  int notify() noexcept override { return errno_of(xenevtchn_notify(channels_.get(), port_)); }

 private:
  EventChannels channels_;
  evtchn_port_t port_;
};

class LibxenCalls final : public XenCalls {
 public:
  LibxenCalls(Control control, ForeignMemory memory, Store store,
              std::unique_ptr<PagingHypercalls> paging) noexcept
      : control_{std::move(control)},
        memory_{std::move(memory)},
        store_{std::move(store)},
        paging_{std::move(paging)} {}

  // --- domains ---------------------------------------------------------------------------------

  int info(DomId domain, DomainInfo& out) noexcept override {
    xc_dominfo_t found{};
    const int nb_found = xc_domain_getinfo(xc(), raw(domain), 1, &found);
    if (nb_found < 0) return errno;
    // It reports the first domain from this number on.
    if (nb_found == 0 || found.domid != raw(domain)) return ESRCH;
    out = {.nb_pages = found.nr_pages,
           .nb_paged_pages = found.nr_paged_pages,
           .nb_vcpus = found.max_vcpu_id + 1,
           .hvm = found.hvm != 0,
           .hap = found.hap != 0,
           .paused = found.paused != 0,
           .dying = found.dying != 0,
           .shut_down = found.shutdown != 0,
           .suspended = found.shutdown != 0 && found.shutdown_reason == SHUTDOWN_suspend};
    return 0;
  }
  int pause(DomId domain) noexcept override { return errno_of(xc_domain_pause(xc(), raw(domain))); }
  int unpause(DomId domain) noexcept override {
    return errno_of(xc_domain_unpause(xc(), raw(domain)));
  }
  int resume(DomId domain) noexcept override {
    constexpr int kFast = 1;  // its hypercall returns "cancelled"; no new shared info
    return or_gone(domain, errno_of(xc_domain_resume(xc(), raw(domain), kFast)));
  }
  int destroy(DomId domain) noexcept override {
    return errno_of(xc_domain_destroy(xc(), raw(domain)));
  }

  // --- memory ----------------------------------------------------------------------------------

  int map(DomId domain, Access access, std::span<const Gfn> pages, std::span<int> errors,
          std::byte*& out) noexcept override {
    const int prot = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
    void* first = xenforeignmemory_map(memory_.get(), raw(domain), prot, pages.size(),
                                       frames(pages), errors.data());
    if (first == nullptr) return errno;
    // The header speaks of errno values; the library stores negative ones.
    for (int& error : errors) error = std::abs(error);
    out = static_cast<std::byte*>(first);
    return 0;
  }
  void unmap(std::byte* first, std::size_t nb_pages) noexcept override {
    xenforeignmemory_unmap(memory_.get(), first, nb_pages);
  }
  int populate(DomId domain, std::span<const Gfn> pages) noexcept override {
    return or_gone(domain, errno_of(xc_domain_populate_physmap_exact(
                               xc(), raw(domain), pages.size(), 0, 0, frames(pages))));
  }
  int depopulate(DomId domain, Gfn page) noexcept override {
    xen_pfn_t frame = page.value;
    return or_gone(domain,
                   errno_of(xc_domain_decrease_reservation_exact(xc(), raw(domain), 1, 0, &frame)));
  }
  int set_max_pages(DomId domain, std::uint64_t nb_pages) noexcept override {
    return errno_of(xc_domain_setmaxmem(xc(), raw(domain), nb_pages * (kPageSize / 1024)));
  }
  int log_dirty(DomId domain, bool on) noexcept override {
    const unsigned op = on ? XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY : XEN_DOMCTL_SHADOW_OP_OFF;
    return errno_of(xc_shadow_control(xc(), raw(domain), op, nullptr, 0));
  }
  int take_dirty(DomId domain, std::span<std::uint64_t> words) noexcept override {
    // The header's macros for this are GNU C.
    xc_hypercall_buffer_t buffer{};
    // Not bounced. NOLINTNEXTLINE(performance-no-int-to-ptr): so the header's own macros mark it
    buffer.ubuf = reinterpret_cast<void*>(-1);
    const auto nb_pages = static_cast<int>((words.size_bytes() + kPageSize - 1) / kPageSize);
    const void* bitmap = xc__hypercall_buffer_alloc_pages(xc(), &buffer, nb_pages);
    if (bitmap == nullptr) return ENOMEM;
    const int errnum = xc_logdirty_control(xc(), raw(domain), XEN_DOMCTL_SHADOW_OP_CLEAN, &buffer,
                                           words.size() * 64, 0, nullptr) < 0
                           ? errno
                           : 0;
    if (errnum == 0) std::memcpy(words.data(), bitmap, words.size_bytes());
    xc__hypercall_buffer_free_pages(xc(), &buffer, nb_pages);
    return errnum;
  }

  // --- paging ----------------------------------------------------------------------------------

  int paging_ring_page(DomId domain, Gfn& out) noexcept override {
    return errno_of(xc_hvm_param_get(xc(), raw(domain), HVM_PARAM_PAGING_RING_PFN, &out.value));
  }
  int paging_enable(DomId domain, std::uint32_t& port) noexcept override {
    return errno_of(xc_mem_paging_enable(xc(), raw(domain), &port));
  }
  int paging_disable(DomId domain) noexcept override {
    const int errnum = errno_of(xc_mem_paging_disable(xc(), raw(domain)));
    // There is none. Source: vm_event_domctl() of xen/common/vm_event.c.
    return errnum == EINVAL ? 0 : errnum;
  }
  int paging_resume(DomId domain) noexcept override {
    return errno_of(xc_mem_paging_resume(xc(), raw(domain)));
  }
  void paging_evict(DomId domain, std::span<const Gfn> pages,
                    std::span<int> errors) noexcept override {
    in_bursts(&PagingHypercalls::evict, domain, pages, errors);
  }
  void paging_nominate(DomId domain, std::span<const Gfn> pages,
                       std::span<int> errors) noexcept override {
    in_bursts(&PagingHypercalls::nominate, domain, pages, errors);
  }
  void paging_free(DomId domain, std::span<const Gfn> pages,
                   std::span<int> errors) noexcept override {
    in_bursts(&PagingHypercalls::free, domain, pages, errors);
  }
  int paging_load(DomId domain, Gfn page, const std::byte* bytes) noexcept override {
    return paging_->load(domain, page, bytes);
  }
  int bind(DomId domain, std::uint32_t port, std::unique_ptr<EventPort>& out) noexcept override {
    // A handle for each: pending events of all ports of a handle come by one descriptor.
    EventChannels channels{xenevtchn_open(nullptr, 0)};
    if (channels == nullptr) return errno;
    const auto local = xenevtchn_bind_interdomain(channels.get(), raw(domain), port);
    if (local < 0) return errno;
    const int fd = xenevtchn_fd(channels.get());
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0) return errno;
    out = std::make_unique<LibxenPort>(std::move(channels), static_cast<evtchn_port_t>(local));
    return 0;
  }

  // --- state -----------------------------------------------------------------------------------

  int get_context(DomId domain, std::vector<std::byte>& out) noexcept override {
    const int room = xc_domain_hvm_getcontext(xc(), raw(domain), nullptr, 0);
    if (room < 0) return errno;
    out.resize(static_cast<std::size_t>(room));
    const int nb_bytes =
        xc_domain_hvm_getcontext(xc(), raw(domain), reinterpret_cast<std::uint8_t*>(out.data()),
                                 static_cast<std::uint32_t>(room));
    if (nb_bytes < 0) return errno;
    out.resize(static_cast<std::size_t>(nb_bytes));
    return 0;
  }
  int set_context(DomId domain, std::span<const std::byte> context) noexcept override {
    // The library copies it into a buffer of its own.
    auto* bytes = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(context.data()));
    return errno_of(xc_domain_hvm_setcontext(xc(), raw(domain), bytes,
                                             static_cast<std::uint32_t>(context.size())));
  }
  int get_tsc(DomId domain, TscInfo& out) noexcept override {
    return errno_of(xc_domain_get_tsc_info(xc(), raw(domain), &out.mode, &out.elapsed_ns, &out.khz,
                                           &out.incarnation));
  }
  int set_tsc(DomId domain, const TscInfo& tsc) noexcept override {
    return errno_of(xc_domain_set_tsc_info(xc(), raw(domain), tsc.mode, tsc.elapsed_ns, tsc.khz,
                                           tsc.incarnation));
  }
  int cpu(DomId domain, std::uint32_t vcpu, CpuRecord& out) noexcept override {
    HVM_SAVE_TYPE(CPU) record{};
    const int errnum = errno_of(
        xc_domain_hvm_getcontext_partial(xc(), raw(domain), HVM_SAVE_CODE(CPU),
                                         static_cast<std::uint16_t>(vcpu), &record, sizeof record));
    out = {
        .cr3 = record.cr3, .cr4 = record.cr4, .efer = record.msr_efer, .gs_base = record.gs_base};
    return errnum;
  }

  // --- xenstore --------------------------------------------------------------------------------

  int store_read(const std::string& path, std::string& out) noexcept override {
    unsigned nb_bytes = 0;
    const std::unique_ptr<void, Closer<free>> value{
        xs_read(store_.get(), XBT_NULL, path.c_str(), &nb_bytes)};
    if (value == nullptr) return errno;
    out.assign(static_cast<const char*>(value.get()), nb_bytes);
    return 0;
  }
  int store_write(const std::string& path, const std::string& value) noexcept override {
    const bool ok = xs_write(store_.get(), XBT_NULL, path.c_str(), value.data(),
                             static_cast<unsigned>(value.size()));
    return ok ? 0 : errno;
  }
  int store_list(const std::string& path, std::vector<std::string>& out) noexcept override {
    unsigned nb_names = 0;
    char** names = xs_directory(store_.get(), XBT_NULL, path.c_str(), &nb_names);
    if (names == nullptr) return errno;
    const std::unique_ptr<void, Closer<free>> block{static_cast<void*>(names)};  // of all of them
    out.assign(names, names + nb_names);
    return 0;
  }

 private:
  /// For calls that say of a domain that is none what they say of pages that cannot be had, too.
  [[nodiscard]] int or_gone(DomId domain, int errnum) noexcept {
    DomainInfo its;
    return errnum != 0 && info(domain, its) == ESRCH ? ESRCH : errnum;
  }

  [[nodiscard]] xc_interface* xc() const noexcept { return control_.get(); }

  using PagingBurst = void (PagingHypercalls::*)(DomId, std::span<const Gfn>,
                                                 std::span<int>) noexcept;
  void in_bursts(PagingBurst call, DomId domain, std::span<const Gfn> pages,
                 std::span<int> errors) noexcept {
    for (std::size_t at = 0; at < pages.size(); at += PagingHypercalls::kMost) {
      const std::size_t nb_pages = std::min(PagingHypercalls::kMost, pages.size() - at);
      (paging_.get()->*call)(domain, pages.subspan(at, nb_pages), errors.subspan(at, nb_pages));
    }
  }

  /// @return the same numbers as the library wants them; valid until the next call
  xen_pfn_t* frames(std::span<const Gfn> pages) noexcept {
    frames_.clear();
    for (const Gfn page : pages) frames_.push_back(page.value);
    return frames_.data();
  }

  Control control_;
  ForeignMemory memory_;
  Store store_;
  std::unique_ptr<PagingHypercalls> paging_;
  std::vector<xen_pfn_t> frames_;
};

}  // namespace

Result<std::unique_ptr<XenCalls>> open_libxen() {
  Control control{xc_interface_open(nullptr, nullptr, 0)};
  if (control == nullptr) return fail(errno, "xc_interface_open");
  ForeignMemory memory{xenforeignmemory_open(nullptr, 0)};
  if (memory == nullptr) return fail(errno, "xenforeignmemory_open");
  Store store{xs_open(0)};
  if (store == nullptr) return fail(errno, "xs_open");
  auto paging = PagingHypercalls::make();
  if (paging == nullptr) return fail(errno, "xencall_open");
  return std::make_unique<LibxenCalls>(std::move(control), std::move(memory), std::move(store),
                                       std::move(paging));
}

}  // namespace snowfabric::xen
