// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fabric/base/presence.hpp"
#include "tests/xen-glue/fake_xen.hpp"
#include "xen-glue/guest_bitmap_layout.h"

namespace snowfabric::xen::test {

/// sf-xen-agent of a fake domain: answers as soon as it is asked.
class FakeAgent {
 public:
  /// @param where  its bitmap's only page
  FakeAgent(FakeXen& xen, DomId id, std::uint64_t nb_pages, Gfn where)
      : xen_{xen},
        domain_{*xen.find(id)},
        folder_{"/local/domain/" + std::to_string(static_cast<unsigned>(id)) + "/"},
        nb_pages_{nb_pages},
        where_{where} {
    const sf_bitmap_header header{.magic = SF_BITMAP_MAGIC,
                                  .version = SF_BITMAP_VERSION,
                                  .generation = 0,
                                  .nb_pages = nb_pages,
                                  .reserved = {}};
    std::memcpy(domain_.page(where), &header, sizeof header);
    xen.store[folder_ + SF_NODE_BITMAP] = std::to_string(where.value) + " 1 0";
    xen.on_store_write = [this](const std::string& path, const std::string& value) {
      if (path == folder_ + SF_NODE_ASK) on_question(value);
    };
  }
  FakeAgent(const FakeAgent&) = delete;
  FakeAgent& operator=(const FakeAgent&) = delete;

  std::vector<Gfn> free;
  std::string refusal;
  bool silent = false;

 private:
  void on_question(const std::string& token) {
    if (silent) return;
    auto* words =
        reinterpret_cast<std::uint64_t*>(domain_.page(where_) + SF_BITMAP_PRESENCE_AT +
                                         Presence::words_for(nb_pages_) * sizeof(std::uint64_t));
    for (const Gfn page : free) words[page.value / 64] |= std::uint64_t{1} << (page.value % 64);
    xen_.store[folder_ + SF_NODE_ANSWER] =
        token + (refusal.empty() ? " ok" : " refused " + refusal);
  }

  FakeXen& xen_;
  FakeDomain& domain_;
  std::string folder_;
  std::uint64_t nb_pages_;
  Gfn where_;
};

}  // namespace snowfabric::xen::test
