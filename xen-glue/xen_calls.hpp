// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/xen_domain.hpp"

/// What this project asks of Xen, one function a library call. All else in xen-glue/ stands on this
/// and knows no header of Xen's, so it is built and tested where there is no Xen.
namespace snowfabric::xen {

enum class DomId : std::uint16_t {};  ///< domid_t; valid on one host only, never on the wire

/// Source: xc_dominfo_t of xenctrl.h.
struct DomainInfo {
  std::uint64_t nb_pages = 0;        ///< populated, special pages among them
  std::uint64_t nb_paged_pages = 0;  ///< evicted and not loaded again
  std::uint32_t nb_vcpus = 0;
  bool hvm = false;  ///< HVM or PVH
  bool hap = false;  ///< with hardware assisted paging (EPT, NPT)
  bool paused = false;
  bool dying = false;
  bool shut_down = false;  ///< it stands still: ended, rebooting, crashed, or suspended for a while
  bool suspended = false;  ///< shut down, and the reason is suspend
};

/// What tells where a vCPU's kernel has its data. Source: struct hvm_hw_cpu of Xen's
/// public/arch-x86/hvm/save.h.
struct CpuRecord {
  std::uint64_t cr3 = 0, cr4 = 0, efer = 0;
  std::uint64_t gs_base = 0;  ///< of Linux' per-CPU data, as long as the vCPU is in the kernel
};

/// What becomes of the RAM of a parent that runs on.
enum class Keep : std::uint8_t {
  kCopy,     ///< all of it is copied, most of that before the pause
  kInPlace,  ///< nominated in the pause; whoever serves it copies a page when the parent touches it
};

enum class Access : std::uint8_t { kRead, kReadWrite };

/// One end of an event channel, bound to a domain; unbound with this object.
class EventPort {
 public:
  EventPort() = default;
  EventPort(const EventPort&) = delete;
  EventPort& operator=(const EventPort&) = delete;
  virtual ~EventPort() = default;
  /// Readable once the other end has notified, until acknowledge().
  [[nodiscard]] virtual int fd() const noexcept = 0;
  /// Takes a notification, if there is one, so that the next one is heard. Never blocks.
  virtual void acknowledge() noexcept = 0;
  /// @return 0 or errno
  virtual int notify() noexcept = 0;
};

/// Every function returns 0 or a positive errno: ESRCH: no such domain; EPERM: this is no dom0;
/// others by name. A domain that is destroyed stays for calls, which may say what they like of it,
/// until nobody maps its pages any more. One thread at a time.
class XenCalls {
 public:
  XenCalls() = default;
  XenCalls(const XenCalls&) = delete;
  XenCalls& operator=(const XenCalls&) = delete;
  virtual ~XenCalls() = default;

  virtual int info(DomId domain, DomainInfo& out) noexcept = 0;
  /// Counted: as many unpause() let it run again.
  virtual int pause(DomId domain) noexcept = 0;
  /// @return EINVAL: it is not paused
  virtual int unpause(DomId domain) noexcept = 0;
  /// Lets a suspended domain go on as if its suspend had been cancelled. @return EINVAL: it is none
  virtual int resume(DomId domain) noexcept = 0;
  /// Ends it: kills the guest and gives its memory back.
  virtual int destroy(DomId domain) noexcept = 0;

  /// Maps pages in a row. Evicted ones are asked for and have ENOENT, but it may block until
  /// they have come: not for a domain one pages oneself.
  /// @param errors  of each page, 0 or errno; as many as pages
  /// @param out     the first page, if 0 is returned; pages with an error are not to be touched
  virtual int map(DomId domain, Access access, std::span<const Gfn> pages, std::span<int> errors,
                  std::byte*& out) noexcept = 0;
  virtual void unmap(std::byte* first, std::size_t nb_pages) noexcept = 0;
  /// Gives pages to the domain, with any content; evicted pages become present.
  /// @return EBUSY: not all of them could be had
  virtual int populate(DomId domain, std::span<const Gfn> pages) noexcept = 0;
  /// Takes a page from the domain. @return EINVAL: no page is there
  virtual int depopulate(DomId domain, Gfn page) noexcept = 0;
  /// The most memory it may have, special pages among it.
  virtual int set_max_pages(DomId domain, std::uint64_t nb_pages) noexcept = 0;
  /// Has Xen note which pages the domain writes, but not those it gets or gives back, nor what it
  /// writes to one it got, until the next take_dirty(). @return EINVAL: it does already
  virtual int log_dirty(DomId domain, bool on) noexcept = 0;
  /// What was written since the last call, or since it is noted.
  /// @param words  bit p % 64 of word p / 64: page p was written; for all pages that matter
  virtual int take_dirty(DomId domain, std::span<std::uint64_t> words) noexcept = 0;

  /// Where libxl has put the page for the paging ring.
  virtual int paging_ring_page(DomId domain, Gfn& out) noexcept = 0;
  /// @param port  of the domain's event channel for the ring
  /// @return ENOSYS: the hypervisor is built without memory paging; ENODEV: neither HVM nor PVH, or
  ///         no HAP; EBUSY: somebody pages the domain already; EMLINK: it has an IOMMU; EXDEV: it
  ///         populates on demand; EOPNOTSUPP: this dom0 is not PV
  virtual int paging_enable(DomId domain, std::uint32_t& port) noexcept = 0;
  /// Whoever asks: also the paging of another process. Good if nobody pages the domain.
  /// @return EBUSY: a vCPU waits for room in the ring
  virtual int paging_disable(DomId domain) noexcept = 0;
  /// Has Xen take the answers that are in the ring, whoever wrote them.
  /// @return ENODEV: nobody pages the domain
  virtual int paging_resume(DomId domain) noexcept = 0;
  /// Takes pages and what is in them away: who touches one waits for the pager.
  /// @param errors  of each page; as many as pages. EBUSY: more than the guest refers to it
  virtual void paging_evict(DomId domain, std::span<const Gfn> pages,
                            std::span<int> errors) noexcept = 0;
  /// Leaves pages where they are, but who touches one waits for the pager.
  /// @param errors  as of paging_evict(). EBUSY also: no such page, or it is nominated already
  virtual void paging_nominate(DomId domain, std::span<const Gfn> pages,
                               std::span<int> errors) noexcept = 0;
  /// Gives nominated pages back. Xen asks the pager for each on the way, and nobody waits.
  /// @pre somebody pages the domain, or it crashes; none is evicted, nor does Xen note what is
  ///      written
  /// @param errors  of each page: 0: it is the guest's; EAGAIN: the ring is full; EINVAL: no page
  virtual void paging_free(DomId domain, std::span<const Gfn> pages,
                           std::span<int> errors) noexcept = 0;
  /// @param bytes  a page; one that was asked for but never evicted keeps its own
  /// @return ESRCH: also of a domain that is being destroyed; ENOENT: the page is neither evicted
  ///         nor asked for; ENOMEM: the host is short of memory, or the domain has all it may
  virtual int paging_load(DomId domain, Gfn page, const std::byte* bytes) noexcept = 0;
  virtual int bind(DomId domain, std::uint32_t port, std::unique_ptr<EventPort>& out) noexcept = 0;

  /// The HVM save record of all vCPUs and devices.
  virtual int get_context(DomId domain, std::vector<std::byte>& out) noexcept = 0;
  /// @return EINVAL, ENODATA and others: not a record for this domain
  virtual int set_context(DomId domain, std::span<const std::byte> context) noexcept = 0;
  virtual int get_tsc(DomId domain, TscInfo& out) noexcept = 0;
  virtual int set_tsc(DomId domain, const TscInfo& tsc) noexcept = 0;
  /// @return ENODATA: it is down; ENOENT: no such vCPU
  virtual int cpu(DomId domain, std::uint32_t vcpu, CpuRecord& out) noexcept = 0;

  /// A node of xenstore. @return ENOENT: no such node
  virtual int store_read(const std::string& path, std::string& out) noexcept = 0;
  virtual int store_write(const std::string& path, const std::string& value) noexcept = 0;
  /// The names of the nodes below one. @return ENOENT: no such node
  virtual int store_list(const std::string& path, std::vector<std::string>& out) noexcept = 0;
};

}  // namespace snowfabric::xen
