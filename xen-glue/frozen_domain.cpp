// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/frozen_domain.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <thread>

#include <fmt/format.h>
#include <sys/mman.h>

namespace snowfabric::xen {
namespace {

using Clock = std::chrono::steady_clock;

/// libxl puts RAM above 4 GiB from here on; Source: HVM_BELOW_4G_RAM_END of xen/hvm/e820.h.
constexpr std::uint64_t kMaxRamPages = 0xf0000;
/// From a vCPU's GS.base on: all of Linux' per-CPU data lies within, the vcpu_info wherever in it.
constexpr std::uint64_t kPerCpuPages = 64;
constexpr auto kLookEvery = std::chrono::milliseconds{1};

std::string node(const Domain& domain, const char* name) {
  return fmt::format("/local/domain/{}/{}", static_cast<std::uint16_t>(domain.id()), name);
}

/// RAM as it was at the start: what a balloon gave back since is counted too.
Result<std::uint64_t> ram_pages(const Domain& domain) {
  const std::string path = node(domain, "memory/static-max");
  std::string text;
  if (const int errnum = domain.calls().store_read(path, text)) return fail(errnum, "read " + path);
  std::uint64_t kib = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), kib);
  if (error != std::errc{} || kib < kPageSize / 1024) return fail(EINVAL, path + " = " + text);
  const std::uint64_t nb_pages = kib / (kPageSize / 1024);
  if (nb_pages > kMaxRamPages)
    return fail(ENOTSUP, fmt::format("{} has {} KiB, more than {}", to_string(domain.id()), kib,
                                     kMaxRamPages * kPageSize / 1024));
  return nb_pages;
}

Result<void> suspend(const Domain& domain, std::chrono::milliseconds timeout) {
  const std::string path = node(domain, "control/shutdown");
  if (const int errnum = domain.calls().store_write(path, "suspend"))
    return fail(errnum, "write " + path);
  for (const auto deadline = Clock::now() + timeout; Clock::now() < deadline;) {
    const auto info = domain.info();
    if (!info) return std::unexpected(info.error());
    if (info->suspended) return {};
    std::this_thread::sleep_for(kLookEvery);
  }
  return fail(ETIMEDOUT, fmt::format("{} was asked to suspend", to_string(domain.id())));
}

Result<std::vector<Gfn>> eager_pages(const Domain& domain, std::uint32_t nb_vcpus,
                                     std::uint64_t nb_pages) {
  std::vector<Gfn> eager;
  XenCalls& calls = domain.calls();
  for (std::uint32_t vcpu = 0; vcpu < nb_vcpus; ++vcpu) {
    std::uint64_t base = 0;
    if (const auto ok = domain.checked(calls.gs_base(domain.id(), vcpu, base), "read a CPU record");
        !ok)
      return std::unexpected(ok.error());
    for (std::uint64_t i = 0; i < kPerCpuPages; ++i) {
      Gfn page;  // what is not mapped there is no per-CPU data
      const int errnum = calls.translate(domain.id(), vcpu, base + i * kPageSize, page);
      if (errnum == 0 && page.value < nb_pages) eager.push_back(page);
    }
  }
  std::ranges::sort(eager);
  const auto repeated = std::ranges::unique(eager);
  eager.erase(repeated.begin(), repeated.end());
  return eager;
}

Result<DomainState> read_state(const Domain& domain, std::uint64_t nb_pages) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  auto context = domain.context();
  if (!context) return std::unexpected(context.error());
  const auto tsc = domain.tsc();
  if (!tsc) return std::unexpected(tsc.error());
  auto eager = eager_pages(domain, info->nb_vcpus, nb_pages);
  if (!eager) return std::unexpected(eager.error());
  return DomainState{std::move(*context), *tsc, std::move(*eager)};
}

/// A memfd and its bytes, while they are written.
class Target {
 public:
  [[nodiscard]] static Result<Target> make(std::uint64_t nb_pages) {
    Target target;
    target.fd_ = UniqueFd{memfd_create("frozen domain", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    const std::size_t nb_bytes = nb_pages * kPageSize;
    if (!target.fd_ || ftruncate(target.fd_.get(), static_cast<off_t>(nb_bytes)) != 0)
      return fail(errno, fmt::format("memfd of {} bytes", nb_bytes));
    void* bytes = mmap(nullptr, nb_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, target.fd_.get(), 0);
    if (bytes == MAP_FAILED) return fail(errno, fmt::format("mmap of {} bytes", nb_bytes));
    target.bytes_ = {static_cast<std::byte*>(bytes), nb_bytes};
    return target;
  }
  Target(Target&& from) noexcept
      : fd_{std::move(from.fd_)}, bytes_{std::exchange(from.bytes_, {})} {}
  Target& operator=(Target&&) = delete;
  ~Target() { unmap(); }

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  /// Ends the writing, for everybody.
  [[nodiscard]] Result<UniqueFd> seal() && {
    unmap();
    if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) != 0)
      return fail(errno, "seal of a frozen domain");
    return std::move(fd_);
  }

 private:
  Target() = default;
  void unmap() noexcept {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
    bytes_ = {};
  }
  UniqueFd fd_;
  std::span<std::byte> bytes_;
};

Result<void> copy_ram(const Domain& domain, std::span<std::byte> out, std::vector<Gfn>& missing) {
  std::vector<Gfn> all(out.size() / kPageSize);
  for (std::uint64_t i = 0; i < all.size(); ++i) all[i] = {i};
  return domain.read(all, out, missing);
}

}  // namespace

Result<FrozenDomain> FrozenDomain::copy(Domain domain, std::chrono::milliseconds timeout) {
  const auto info = domain.info();
  if (!info) return std::unexpected(info.error());
  if (!info->hvm) return fail(EINVAL, to_string(domain.id()) + " is neither HVM nor PVH");
  const auto nb_pages = ram_pages(domain);
  if (!nb_pages) return std::unexpected(nb_pages.error());
  auto target = Target::make(*nb_pages);
  if (!target) return std::unexpected(target.error());
  if (const auto ok = suspend(domain, timeout); !ok) return std::unexpected(ok.error());

  const auto since = Clock::now();
  FrozenDomain frozen{.memory = {}, .nb_pages = *nb_pages, .missing = {}, .state = {}};
  auto state = read_state(domain, *nb_pages);
  const auto copied = copy_ram(domain, target->bytes(), frozen.missing);
  const auto resumed = domain.resume();
  frozen.pause = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - since);
  if (!resumed) return std::unexpected(resumed.error());
  if (!state) return std::unexpected(state.error());
  if (!copied) return std::unexpected(copied.error());
  frozen.state = std::move(*state);
  auto memory = std::move(*target).seal();
  if (!memory) return std::unexpected(memory.error());
  frozen.memory = std::move(*memory);
  return frozen;
}

}  // namespace snowfabric::xen
