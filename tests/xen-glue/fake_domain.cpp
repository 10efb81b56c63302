// SPDX-License-Identifier: BSD-3-Clause
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <sys/eventfd.h>
#include <sys/mman.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

std::uint32_t& ring_word(std::span<std::byte> page, std::size_t index) {
  return reinterpret_cast<std::uint32_t*>(page.data())[index];
}

}  // namespace

FakeDomain::FakeDomain(std::uint64_t nb_pages, std::uint32_t nb_vcpus, std::uint64_t nb_room)
    : info{.nb_pages = nb_pages, .nb_vcpus = nb_vcpus, .hvm = true, .hap = true, .paused = true},
      memory_{memfd_create("fake domain", MFD_CLOEXEC)},
      p2m_(nb_pages, P2m::kRam),
      vcpus_(nb_vcpus),
      event_{eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)} {
  p2m_.resize(nb_pages + nb_room, P2m::kNone);
  const auto nb_bytes = (p2m_.size() + 1) * kPageSize;  // the last is the ring
  if (ftruncate(memory_.get(), static_cast<off_t>(nb_bytes)) != 0) std::abort();
  void* mapped = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
  if (mapped == MAP_FAILED) std::abort();
  mapped_ = static_cast<std::byte*>(mapped);
}

FakeDomain::~FakeDomain() { munmap(mapped_, (p2m_.size() + 1) * kPageSize); }

std::uint64_t FakeDomain::slot(Gfn page) const {
  return page == kRingPage ? p2m_.size() : page.value;
}
FakeDomain::P2m& FakeDomain::state(Gfn page) {
  return page == kRingPage ? ring_state_ : p2m_[page.value];
}
std::byte* FakeDomain::page(Gfn page) noexcept { return mapped_ + slot(page) * kPageSize; }
std::span<std::byte, kPageSize> FakeDomain::ring() noexcept {
  return std::span<std::byte, kPageSize>{page(kRingPage), kPageSize};
}
bool FakeDomain::anybody_waits() const {
  return std::ranges::any_of(vcpus_, [](const Vcpu& vcpu) { return vcpu.wants.has_value(); });
}

bool FakeDomain::is_missing(Gfn page) {
  return state(page) == P2m::kEvicted || state(page) == P2m::kAsked;
}

void FakeDomain::make_ram(Gfn page) {
  if (is_missing(page)) --info.nb_paged_pages;
  state(page) = P2m::kRam;
}

bool FakeDomain::touch(std::uint32_t vcpu, Gfn page) {
  const std::lock_guard lock{mutex_};
  if (p2m_[page.value] == P2m::kRam) return true;
  vcpus_[vcpu] = {.wants = page};
  ask();
  return false;
}

void FakeDomain::touch_for(std::uint32_t vcpu, Gfn page) {
  const std::lock_guard lock{mutex_};
  if (!vcpus_[vcpu].wants) vcpus_[vcpu].wants = page;
  if (can_be_asked(page)) mark_asked(page);
  if (put(page, vcpu, kVcpuPaused, 0)) ++vcpus_[vcpu].nb_asked;
}

void FakeDomain::write(Gfn page, std::byte value) {
  std::memset(this->page(page), std::to_integer<int>(value), kPageSize);
  if (dirty) dirty->insert(page);
}

/// @return 0 or errno
int FakeDomain::evict(Gfn page) {
  if (!known(page) || state(page) != P2m::kRam || referred.contains(page)) return EBUSY;
  state(page) = P2m::kEvicted;
  std::memset(this->page(page), 0xdd, kPageSize);  // the memory is somebody else's now
  ++info.nb_paged_pages;
  return 0;
}

/// @return 0 or errno
int FakeDomain::nominate(Gfn page) {
  if (!known(page) || state(page) != P2m::kRam || referred.contains(page)) return EBUSY;
  state(page) = P2m::kNominated;
  return 0;
}

/// @return 0 or errno
int FakeDomain::free(Gfn page) {
  const std::lock_guard lock{mutex_};
  if (!known(page) || state(page) == P2m::kNone) return EINVAL;
  if (state(page) == P2m::kNominated) ask_for_dom0(page);
  if (state(page) == P2m::kNominated) return EAGAIN;
  make_ram(page);
  return 0;
}

void FakeDomain::replace(Gfn page) { make_ram(page); }

void FakeDomain::drop(Gfn page) {
  const std::lock_guard lock{mutex_};
  if (paging_ && state(page) != P2m::kRam) put(page, 0, 0, kDropPage);
  if (state(page) != P2m::kNone) --info.nb_pages;
  make_ram(page);
  state(page) = P2m::kNone;
}

/// Xen's side of a request. @return false: no room
bool FakeDomain::put(Gfn page, std::uint32_t vcpu, std::uint32_t flags,
                     std::uint32_t paging_flags) {
  if (asked_ - heard_ == kRingSlots) return false;
  const RingSlot request{.version = kVmEventVersion,
                         .flags = flags,
                         .reason = kVmEventPaging,
                         .vcpu = vcpu,
                         .reserved = 0,
                         .gfn = page.value,
                         .p2m_type = 0,
                         .paging_flags = paging_flags,
                         .unused = {}};
  std::memcpy(ring().data() + kRingSlotsAt + asked_ % kRingSlots * kRingSlotBytes, &request,
              sizeof request);
  std::atomic_ref{ring_word(ring(), 0)}.store(++asked_, std::memory_order_release);
  eventfd_write(event_.get(), 1);
  return true;
}

/// What the waiting vCPUs do once they run: go on, or ask. One that finds no room is blocked.
void FakeDomain::ask() {
  if (nb_pauses > 0) return;
  for (std::uint32_t i = 0; i < vcpus_.size(); ++i) {
    Vcpu& vcpu = vcpus_[i];
    if (!vcpu.wants || vcpu.nb_asked > 0) continue;
    if (p2m_[vcpu.wants->value] == P2m::kRam)
      vcpu = {};
    else if (!paging_)
      crashed = true;
    else if (can_be_asked(*vcpu.wants)) {
      vcpu.wants_room = !put(*vcpu.wants, i, kVcpuPaused, 0);
      if (vcpu.wants_room) continue;
      vcpu.nb_asked = 1;
      mark_asked(*vcpu.wants);
    }
  }
}

bool FakeDomain::anybody_wants_room() {
  const std::lock_guard lock{mutex_};
  return paging_ && std::ranges::any_of(vcpus_, &Vcpu::wants_room);
}

bool FakeDomain::can_be_asked(Gfn page) {
  return state(page) == P2m::kEvicted || state(page) == P2m::kNominated;
}
void FakeDomain::mark_asked(Gfn page) {
  state(page) = state(page) == P2m::kEvicted ? P2m::kAsked : P2m::kWanted;
}

/// Who maps a page does not wait for it.
void FakeDomain::ask_for_dom0(Gfn page) {
  if (paging_ && can_be_asked(page) && put(page, 0, 0, 0)) mark_asked(page);
}

void FakeDomain::on_notify() {
  const std::lock_guard lock{mutex_};
  const auto answered = std::atomic_ref{ring_word(ring(), 2)}.load(std::memory_order_acquire);
  for (; heard_ != answered; ++heard_) {
    RingSlot answer;
    std::memcpy(&answer, ring().data() + kRingSlotsAt + heard_ % kRingSlots * kRingSlotBytes,
                sizeof answer);
    if ((answer.flags & kVcpuPaused) == 0 || answer.vcpu >= vcpus_.size()) continue;
    if (known({answer.gfn}) && state({answer.gfn}) == P2m::kWanted) state({answer.gfn}) = P2m::kRam;
    if (Vcpu& vcpu = vcpus_[answer.vcpu]; vcpu.nb_asked > 0) --vcpu.nb_asked;
  }
  ask();
}

void FakeDomain::enable() {
  paging_ = true;
  ++nb_enabled_;
  asked_ = heard_ = 0;
}

}  // namespace snowfabric::xen::test
