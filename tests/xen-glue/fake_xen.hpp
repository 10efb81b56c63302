// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "fabric/base/unique_fd.hpp"
#include "xen-glue/paging_ring.hpp"
#include "xen-glue/xen_calls.hpp"

namespace snowfabric::xen::test {

enum class Call : std::uint8_t {
  kInfo,
  kPause,
  kUnpause,
  kResume,
  kDestroy,
  kMap,
  kPopulate,
  kDepopulate,
  kMaxPages,
  kLogDirty,
  kTakeDirty,
  kRingPage,
  kEnable,
  kDisable,
  kResumePaging,
  kEvict,
  kNominate,
  kFree,
  kLoad,
  kBind,
  kGetContext,
  kSetContext,
  kGetTsc,
  kSetTsc,
  kCpu,
  kStoreRead,
  kStoreWrite,
  kStoreList,
};

/// One domain as Xen sees it: its pages, its vCPUs, and Xen's end of the paging ring.
class FakeDomain {
 public:
  static constexpr Gfn kRingPage{0xfeff8};
  enum class P2m : std::uint8_t { kNone, kRam, kNominated, kWanted, kEvicted, kAsked };

  /// @param nb_room  more pages that it may get
  FakeDomain(std::uint64_t nb_pages, std::uint32_t nb_vcpus, std::uint64_t nb_room);
  ~FakeDomain();
  FakeDomain(const FakeDomain&) = delete;
  FakeDomain& operator=(const FakeDomain&) = delete;

  // --- what a test does ---
  /// A vCPU reads a page. @return whether it goes on at once; else it waits until it can, or, for
  /// a page that somebody has asked for already, tries again and again
  bool touch(std::uint32_t vcpu, Gfn page);
  /// Xen itself touches an evicted page for a vCPU that waits, as when it notes that it stands: one
  /// more request, and the vCPU goes on when all are answered.
  void touch_for(std::uint32_t vcpu, Gfn page);
  /// Time passes for those that try again and again.
  void run() { ask(); }
  /// Whether a vCPU waits for room in the ring.
  [[nodiscard]] bool anybody_wants_room();
  /// The guest puts another page there, as with add_to_physmap: Xen says nothing of it.
  void replace(Gfn page);
  /// The guest gives the page back: Xen tells the pager.
  void drop(Gfn page);
  [[nodiscard]] bool vcpu_waits(std::uint32_t vcpu) const {
    const std::lock_guard lock{mutex_};
    return vcpus_[vcpu].wants.has_value();
  }
  [[nodiscard]] bool anybody_waits() const;
  [[nodiscard]] std::byte* page(Gfn page) noexcept;
  [[nodiscard]] P2m p2m(Gfn page) const {
    const std::lock_guard lock{mutex_};
    return p2m_[page.value];
  }
  [[nodiscard]] std::span<std::byte, kPageSize> ring() noexcept;

  /// The guest writes all of a page.
  void write(Gfn page, std::byte value);

  DomainInfo info;
  std::uint64_t max_pages = ~std::uint64_t{0};
  std::optional<std::set<Gfn>> dirty;  ///< while it is noted: what was written
  std::function<void()> meanwhile;     ///< what the guest does between two looks at `dirty`
  std::set<Gfn> referred;              ///< evict refuses these
  std::vector<std::byte> context{kPageSize};
  TscInfo tsc{.mode = 1, .elapsed_ns = 5, .khz = 2'000'000, .incarnation = 1};
  unsigned nb_looks_till_suspend = 0;  ///< by info(); 0: it does not
  unsigned nb_pauses = 1;              ///< as libxl leaves a domain that is created paused
  std::vector<CpuRecord> cpus;         ///< of those that are up
  bool crashed = false;                ///< touched an evicted page, and nobody pages the domain

 private:
  friend class FakeXen;
  friend class FakePort;
  struct Vcpu {
    std::optional<Gfn> wants;
    unsigned nb_asked = 0;    ///< requests in the ring, or taken
    bool wants_room = false;  ///< found the ring full
  };

  [[nodiscard]] bool known(Gfn page) const { return page.value < p2m_.size() || page == kRingPage; }
  [[nodiscard]] std::uint64_t slot(Gfn page) const;
  [[nodiscard]] P2m& state(Gfn page);
  bool put(Gfn page, std::uint32_t vcpu, std::uint32_t flags, std::uint32_t paging_flags);
  void ask();
  void ask_for_dom0(Gfn page);
  [[nodiscard]] bool can_be_asked(Gfn page);
  void mark_asked(Gfn page);
  void on_notify();
  void enable();
  [[nodiscard]] int evict(Gfn page);
  [[nodiscard]] int nominate(Gfn page);
  [[nodiscard]] int free(Gfn page);
  void make_ram(Gfn page);
  [[nodiscard]] bool is_missing(Gfn page);

  /// A pager's thread answers while a test touches pages.
  mutable std::recursive_mutex mutex_;
  UniqueFd memory_;
  std::byte* mapped_;
  std::vector<P2m> p2m_;
  P2m ring_state_ = P2m::kRam;
  std::vector<Vcpu> vcpus_;
  UniqueFd event_;
  bool paging_ = false;
  unsigned nb_enabled_ = 0;  // a port is of one ring
  std::uint32_t asked_ = 0, heard_ = 0;
};

/// Xen without a hypervisor: keeps the contract that contract_test.cpp holds the real one to.
class FakeXen final : public XenCalls {
 public:
  FakeDomain& add(DomId id, std::uint64_t nb_pages, std::uint32_t nb_vcpus = 1,
                  std::uint64_t nb_room = 0);
  void remove(DomId id) { domains_.erase(id); }
  [[nodiscard]] FakeDomain* find(DomId id);
  /// The call fails once, after `nb_good` that do not.
  void fail(Call call, int errnum, unsigned nb_good = 0);

  int info(DomId domain, DomainInfo& out) noexcept override;
  int pause(DomId domain) noexcept override;
  int unpause(DomId domain) noexcept override;
  int resume(DomId domain) noexcept override;
  int destroy(DomId domain) noexcept override;
  int map(DomId domain, Access access, std::span<const Gfn> pages, std::span<int> errors,
          std::byte*& out) noexcept override;
  void unmap(std::byte* first, std::size_t nb_pages) noexcept override;
  int populate(DomId domain, std::span<const Gfn> pages) noexcept override;
  int depopulate(DomId domain, Gfn page) noexcept override;
  int set_max_pages(DomId domain, std::uint64_t nb_pages) noexcept override;
  int log_dirty(DomId domain, bool on) noexcept override;
  int take_dirty(DomId domain, std::span<std::uint64_t> words) noexcept override;
  int paging_ring_page(DomId domain, Gfn& out) noexcept override;
  int paging_enable(DomId domain, std::uint32_t& port) noexcept override;
  int paging_disable(DomId domain) noexcept override;
  int paging_resume(DomId domain) noexcept override;
  void paging_evict(DomId domain, std::span<const Gfn> pages,
                    std::span<int> errors) noexcept override;
  void paging_nominate(DomId domain, std::span<const Gfn> pages,
                       std::span<int> errors) noexcept override;
  void paging_free(DomId domain, std::span<const Gfn> pages,
                   std::span<int> errors) noexcept override;
  int paging_load(DomId domain, Gfn page, const std::byte* bytes) noexcept override;
  int bind(DomId domain, std::uint32_t port, std::unique_ptr<EventPort>& out) noexcept override;
  int get_context(DomId domain, std::vector<std::byte>& out) noexcept override;
  int set_context(DomId domain, std::span<const std::byte> context) noexcept override;
  int get_tsc(DomId domain, TscInfo& out) noexcept override;
  int set_tsc(DomId domain, const TscInfo& tsc) noexcept override;
  int cpu(DomId domain, std::uint32_t vcpu, CpuRecord& out) noexcept override;
  int store_read(const std::string& path, std::string& out) noexcept override;
  int store_write(const std::string& path, const std::string& value) noexcept override;
  int store_list(const std::string& path, std::vector<std::string>& out) noexcept override;

  std::map<std::string, std::string> store;
  bool suspends = true;              ///< a guest that is told to; else nothing happens
  std::function<void()> on_suspend;  ///< its last act
  /// What a guest does that watches a node.
  std::function<void(const std::string& path, const std::string& value)> on_store_write;

  std::function<void()> on_resume_paging;  ///< what guests do then

  std::size_t nb_mapped = 0;  ///< pages mapped and not unmapped

 private:
  /// @return 0 with `out` filled, or the errno to report
  int begin(Call call, DomId id, FakeDomain*& out);
  /// @return the errno the call is to fail with now, or 0
  int failure(Call call);

  struct Failure {
    int errnum;
    unsigned nb_good;
  };
  std::map<DomId, std::unique_ptr<FakeDomain>> domains_;
  std::map<Call, Failure> failures_;
};

}  // namespace snowfabric::xen::test
