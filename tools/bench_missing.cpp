// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_missing.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include <sys/mman.h>
#include <sys/syscall.h>

#include "memtap-dpdk/uffd_ioctl.hpp"

namespace snowfabric::bench {

Result<MissingMemory> MissingMemory::make(std::uint64_t nb_pages) {
  MissingMemory memory;
  // All who fault here are threads of ours: that needs no privilege.
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY;
  memory.uffd_ = UniqueFd{static_cast<int>(syscall(SYS_userfaultfd, kFlags))};
  if (!memory.uffd_) return fail(errno, "userfaultfd(2)");
  const std::size_t nb_bytes = nb_pages * kPageSize;
  void* bytes = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (bytes == MAP_FAILED) return fail(errno, "mmap of the guest's memory");
  memory.bytes_ = {static_cast<std::byte*>(bytes), {nb_bytes}};
  madvise(bytes, nb_bytes, MADV_NOHUGEPAGE);
  uffdio_api api{UFFD_API, 0, 0};
  uffdio_register all{{memory.base(), nb_bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  if (ioctl(memory.uffd(), UFFDIO_API, &api) != 0 ||
      ioctl(memory.uffd(), UFFDIO_REGISTER, &all) != 0)
    return fail(errno, "register the guest's memory with userfaultfd");
  return memory;
}

void MissingMemory::forget() noexcept {
  madvise(bytes_.get(), bytes_.get_deleter().nb_bytes, MADV_DONTNEED);
}

void MissingMemory::give_up() noexcept {
  uffd::unregister(uffd(), base(), bytes_.get_deleter().nb_bytes / kPageSize);
}

}  // namespace snowfabric::bench
