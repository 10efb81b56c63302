// SPDX-License-Identifier: BSD-3-Clause
#include "tests/xen-glue/fake_xen.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <sys/eventfd.h>
#include <sys/mman.h>

namespace snowfabric::xen::test {
namespace {

constexpr std::uint32_t kPort = 7;

}  // namespace

class FakePort final : public EventPort {
 public:
  FakePort(FakeXen& xen, DomId id, const FakeDomain& domain)
      : xen_{xen}, id_{id}, fd_{dup(domain.event_.get())}, nb_enabled_{domain.nb_enabled_} {}
  [[nodiscard]] int fd() const noexcept override { return fd_.get(); }
  void acknowledge() noexcept override {
    eventfd_t count = 0;
    eventfd_read(fd_.get(), &count);
  }
  int notify() noexcept override {
    FakeDomain* domain = xen_.find(id_);
    if (domain == nullptr || domain->nb_enabled_ != nb_enabled_) return ENOTCONN;
    domain->on_notify();
    return 0;
  }

 private:
  FakeXen& xen_;
  DomId id_;
  UniqueFd fd_;
  unsigned nb_enabled_;
};

// --- the calls --------------------------------------------------------------------------------

FakeDomain& FakeXen::add(DomId id, std::uint64_t nb_pages, std::uint32_t nb_vcpus,
                         std::uint64_t nb_room) {
  return *(domains_[id] = std::make_unique<FakeDomain>(nb_pages, nb_vcpus, nb_room));
}

FakeDomain* FakeXen::find(DomId id) {
  const auto found = domains_.find(id);
  return found == domains_.end() ? nullptr : found->second.get();
}

void FakeXen::fail(Call call, int errnum, unsigned nb_good) { failures_[call] = {errnum, nb_good}; }

int FakeXen::failure(Call call) {
  const auto found = failures_.find(call);
  if (found == failures_.end() || found->second.nb_good-- != 0) return 0;
  const int errnum = found->second.errnum;
  failures_.erase(found);
  return errnum;
}

int FakeXen::begin(Call call, DomId id, FakeDomain*& out) {
  out = find(id);
  if (const int errnum = failure(call)) return errnum;
  return out == nullptr ? ESRCH : 0;
}

int FakeXen::info(DomId id, DomainInfo& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kInfo, id, domain)) return errnum;
  domain->info.paused = domain->nb_pauses > 0;
  if (domain->nb_looks_till_suspend > 0 && --domain->nb_looks_till_suspend == 0)
    domain->info.suspended = domain->info.shut_down = true;
  out = domain->info;
  return 0;
}

int FakeXen::pause(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kPause, id, domain)) return errnum;
  ++domain->nb_pauses;
  return 0;
}

int FakeXen::unpause(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kUnpause, id, domain)) return errnum;
  if (domain->nb_pauses == 0) return EINVAL;
  --domain->nb_pauses;
  domain->ask();
  return 0;
}

int FakeXen::resume(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kResume, id, domain)) return errnum;
  if (!domain->info.suspended) return EINVAL;
  domain->info.suspended = domain->info.shut_down = false;
  return 0;
}

int FakeXen::destroy(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kDestroy, id, domain)) return errnum;
  remove(id);
  return 0;
}

int FakeXen::map(DomId id, Access access, std::span<const Gfn> pages, std::span<int> errors,
                 std::byte*& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kMap, id, domain)) return errnum;
  const int prot = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* first = mmap(nullptr, pages.size() * kPageSize, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (first == MAP_FAILED) return errno;
  out = static_cast<std::byte*>(first);
  nb_mapped += pages.size();
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const bool there = domain->known(pages[i]) && domain->state(pages[i]) != FakeDomain::P2m::kNone;
    errors[i] = !there ? EINVAL : domain->is_missing(pages[i]) ? ENOENT : 0;
    if (errors[i] == ENOENT) domain->ask_for_dom0(pages[i]);
    if (errors[i] != 0) continue;
    const auto offset = static_cast<off_t>(domain->slot(pages[i]) * kPageSize);
    if (mmap(out + i * kPageSize, kPageSize, prot, MAP_SHARED | MAP_FIXED, domain->memory_.get(),
             offset) == MAP_FAILED)
      errors[i] = errno;
  }
  return 0;
}

void FakeXen::unmap(std::byte* first, std::size_t nb_pages) noexcept {
  munmap(first, nb_pages * kPageSize);
  nb_mapped -= nb_pages;
}

int FakeXen::populate(DomId id, std::span<const Gfn> pages) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kPopulate, id, domain)) return errnum;
  for (const Gfn page : pages) {
    if (!domain->known(page)) return EBUSY;
    const bool is_new = domain->state(page) == FakeDomain::P2m::kNone;
    if (is_new && domain->info.nb_pages >= domain->max_pages) return EBUSY;
    domain->info.nb_pages += is_new ? 1 : 0;
    domain->make_ram(page);
    std::memset(domain->page(page), 0, kPageSize);
  }
  return 0;
}

int FakeXen::depopulate(DomId id, Gfn page) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kDepopulate, id, domain)) return errnum;
  if (!domain->known(page) || domain->state(page) == FakeDomain::P2m::kNone) return EINVAL;
  --domain->info.nb_pages;
  domain->state(page) = FakeDomain::P2m::kNone;
  return 0;
}

int FakeXen::set_max_pages(DomId id, std::uint64_t nb_pages) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kMaxPages, id, domain)) return errnum;
  domain->max_pages = nb_pages;
  return 0;
}

int FakeXen::log_dirty(DomId id, bool on) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kLogDirty, id, domain)) return errnum;
  if (on && domain->dirty) return EINVAL;
  domain->dirty.reset();
  if (on) domain->dirty.emplace();
  return 0;
}

int FakeXen::take_dirty(DomId id, std::span<std::uint64_t> words) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kTakeDirty, id, domain)) return errnum;
  if (!domain->dirty) return EINVAL;
  if (domain->meanwhile && !domain->info.suspended) domain->meanwhile();
  std::ranges::fill(words, 0);
  for (const Gfn page : *domain->dirty)
    if (page.value / 64 < words.size())
      words[page.value / 64] |= std::uint64_t{1} << (page.value % 64);
  domain->dirty->clear();
  return 0;
}

int FakeXen::paging_ring_page(DomId id, Gfn& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kRingPage, id, domain)) return errnum;
  out = FakeDomain::kRingPage;
  return 0;
}

int FakeXen::paging_enable(DomId id, std::uint32_t& port) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kEnable, id, domain)) return errnum;
  if (domain->paging_) return EBUSY;
  domain->enable();
  port = kPort;
  return 0;
}

int FakeXen::paging_disable(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kDisable, id, domain)) return errnum;
  if (domain->anybody_wants_room()) return EBUSY;
  domain->paging_ = false;
  return 0;
}

int FakeXen::paging_resume(DomId id) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kResumePaging, id, domain)) return errnum;
  if (!domain->paging_) return ENODEV;
  domain->on_notify();
  if (on_resume_paging) on_resume_paging();
  return 0;
}

void FakeXen::paging_evict(DomId id, std::span<const Gfn> pages, std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    FakeDomain* domain;
    errors[i] = begin(Call::kEvict, id, domain);
    if (errors[i] == 0) errors[i] = domain->evict(pages[i]);
  }
}

void FakeXen::paging_nominate(DomId id, std::span<const Gfn> pages,
                              std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    FakeDomain* domain;
    errors[i] = begin(Call::kNominate, id, domain);
    if (errors[i] == 0) errors[i] = domain->nominate(pages[i]);
  }
}

void FakeXen::paging_free(DomId id, std::span<const Gfn> pages, std::span<int> errors) noexcept {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    FakeDomain* domain;
    errors[i] = begin(Call::kFree, id, domain);
    if (errors[i] == 0) errors[i] = domain->free(pages[i]);
  }
}

int FakeXen::paging_load(DomId id, Gfn page, const std::byte* bytes) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kLoad, id, domain)) return errnum;
  if (!domain->known(page)) return ENOENT;
  const bool is_missing = domain->is_missing(page);
  if (!is_missing && domain->state(page) != FakeDomain::P2m::kWanted) return ENOENT;
  if (is_missing) std::memcpy(domain->page(page), bytes, kPageSize);
  domain->make_ram(page);
  return 0;
}

int FakeXen::bind(DomId id, std::uint32_t port, std::unique_ptr<EventPort>& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kBind, id, domain)) return errnum;
  if (port != kPort || !domain->paging_) return EINVAL;
  out = std::make_unique<FakePort>(*this, id, *domain);
  return 0;
}

int FakeXen::get_context(DomId id, std::vector<std::byte>& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kGetContext, id, domain)) return errnum;
  out = domain->context;
  return 0;
}

int FakeXen::set_context(DomId id, std::span<const std::byte> context) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kSetContext, id, domain)) return errnum;
  if (context.size() != domain->context.size()) return EINVAL;
  domain->context.assign(context.begin(), context.end());
  return 0;
}

int FakeXen::get_tsc(DomId id, TscInfo& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kGetTsc, id, domain)) return errnum;
  out = domain->tsc;
  return 0;
}

int FakeXen::set_tsc(DomId id, const TscInfo& tsc) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kSetTsc, id, domain)) return errnum;
  domain->tsc = tsc;
  return 0;
}

int FakeXen::cpu(DomId id, std::uint32_t vcpu, CpuRecord& out) noexcept {
  FakeDomain* domain;
  if (const int errnum = begin(Call::kCpu, id, domain)) return errnum;
  if (vcpu >= domain->info.nb_vcpus) return ENOENT;
  if (vcpu >= domain->cpus.size()) return ENODATA;
  out = domain->cpus[vcpu];
  return 0;
}

int FakeXen::store_read(const std::string& path, std::string& out) noexcept {
  if (const int errnum = failure(Call::kStoreRead)) return errnum;
  const auto found = store.find(path);
  if (found == store.end()) return ENOENT;
  out = found->second;
  return 0;
}

int FakeXen::store_write(const std::string& path, const std::string& value) noexcept {
  if (const int errnum = failure(Call::kStoreWrite)) return errnum;
  store[path] = value;
  if (on_store_write) on_store_write(path, value);
  for (const auto& [id, domain] : domains_)
    if (suspends && value == "suspend" &&
        path ==
            "/local/domain/" + std::to_string(static_cast<unsigned>(id)) + "/control/shutdown") {
      if (on_suspend) on_suspend();
      domain->info.suspended = domain->info.shut_down = true;
    }
  return 0;
}

int FakeXen::store_list(const std::string& path, std::vector<std::string>& out) noexcept {
  if (const int errnum = failure(Call::kStoreList)) return errnum;
  out.clear();
  for (const auto& [node, value] : store) {
    if (!node.starts_with(path + "/")) continue;
    const std::string below = node.substr(path.size() + 1);
    const std::string name = below.substr(0, below.find('/'));
    if (out.empty() || out.back() != name) out.push_back(name);
  }
  return out.empty() ? ENOENT : 0;
}

}  // namespace snowfabric::xen::test
