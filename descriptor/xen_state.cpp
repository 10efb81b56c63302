// SPDX-License-Identifier: BSD-3-Clause
#include "descriptor/xen_state.hpp"

#include <algorithm>
#include <cerrno>

#include <descriptor.pb.h>
#include <fmt/format.h>

namespace snowfabric::xen {
namespace {

std::unexpected<Error> corrupt(std::string_view what) {
  return fail(EBADMSG, fmt::format("descriptor: state of a Xen domain: {}", what));
}

Result<void> check(const pb::XenDomain& domain, std::uint64_t nb_pages) {
  if (domain.nb_vcpus() == 0 || domain.nb_vcpus() > kMaxVcpus)
    return corrupt(fmt::format("{} vCPUs, not 1 to {}", domain.nb_vcpus(), kMaxVcpus));
  const auto& eager = domain.eager_pages();
  if (std::cmp_greater(eager.size(), kMaxEagerPages))
    return corrupt(fmt::format("{} eager pages, at most {}", eager.size(), kMaxEagerPages));
  if (std::ranges::adjacent_find(eager, std::ranges::greater_equal{}) != eager.end())
    return corrupt("its eager pages do not ascend");
  if (!eager.empty() && *eager.rbegin() >= nb_pages)
    return corrupt(fmt::format("eager page {:#x} is outside the image", *eager.rbegin()));
  const std::uint64_t bitmap_end =
      std::uint64_t{domain.bitmap_first_page()} + domain.bitmap_nb_pages();
  if (bitmap_end > nb_pages)
    return corrupt(fmt::format("its bitmap ends at page {:#x}, outside the image", bitmap_end));
  return {};
}

}  // namespace

std::vector<Section> sections_of(const DomainState& state) {
  pb::XenDomain domain;
  domain.set_nb_vcpus(state.nb_vcpus);
  domain.set_tsc_mode(state.tsc.mode);
  domain.set_tsc_elapsed_ns(state.tsc.elapsed_ns);
  domain.set_tsc_khz(state.tsc.khz);
  domain.set_tsc_incarnation(state.tsc.incarnation);
  for (const Gfn page : state.eager) domain.add_eager_pages(static_cast<std::uint32_t>(page.value));
  domain.set_target_kib(state.target_kib);
  if (state.bitmap) {
    domain.set_bitmap_first_page(static_cast<std::uint32_t>(state.bitmap->first.value));
    domain.set_bitmap_nb_pages(state.bitmap->nb_pages);
  }
  std::vector<std::byte> bytes(domain.ByteSizeLong());
  domain.SerializeToArray(bytes.data(), static_cast<int>(bytes.size()));
  return {{SectionType::kXenContext, state.context}, {SectionType::kXenDomain, std::move(bytes)}};
}

Result<DomainState> state_of(const Descriptor& descriptor) {
  const Section* context = descriptor.find(SectionType::kXenContext);
  const Section* section = descriptor.find(SectionType::kXenDomain);
  if (context == nullptr || section == nullptr)
    return fail(EINVAL, "the descriptor has no state of a Xen domain: its parent was another kind");
  if (context->bytes.empty() || context->bytes.size() > kMaxContextBytes)
    return corrupt(
        fmt::format("a record of {} bytes, not 1 to {}", context->bytes.size(), kMaxContextBytes));
  pb::XenDomain domain;
  if (section->bytes.size() > kMaxContextBytes ||
      !domain.ParseFromArray(section->bytes.data(), static_cast<int>(section->bytes.size())))
    return corrupt("malformed");
  if (const auto ok = check(domain, descriptor.spaces.front().nb_pages); !ok)
    return std::unexpected(ok.error());
  DomainState state{.context = context->bytes,
                    .tsc = {domain.tsc_mode(), domain.tsc_elapsed_ns(), domain.tsc_khz(),
                            domain.tsc_incarnation()},
                    .nb_vcpus = domain.nb_vcpus(),
                    .eager = {},
                    .target_kib = domain.target_kib(),
                    .bitmap = {}};
  if (domain.bitmap_nb_pages() > 0)
    state.bitmap = PageRange{Gfn{domain.bitmap_first_page()}, domain.bitmap_nb_pages()};
  for (const std::uint32_t page : domain.eager_pages()) state.eager.push_back({page});
  return state;
}

}  // namespace snowfabric::xen
