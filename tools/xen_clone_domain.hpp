// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <cstdint>
#include <string>
#include <utility>

#include "descriptor/xen_state.hpp"
#include "fabric/base/result.hpp"
#include "xen-glue/domain.hpp"

/// The domain that sf-xen-clone makes by xl. Control path.
namespace snowfabric::xen {

/// Of a name that xl would take for something else: digits are a domain's number to it.
/// @return what is wrong with it; empty: nothing
[[nodiscard]] std::string name_error(const std::string& name);

/// A domain that goes with this object.
class Clone {
 public:
  Clone(XenCalls& calls, std::string name) : calls_{calls}, name_{std::move(name)} {}
  Clone(const Clone&) = delete;
  Clone& operator=(const Clone&) = delete;
  ~Clone();

  /// @param extra_config  a file of lines for xl that override ours; empty: none
  /// @return EIO: xl failed and has said why on stderr; or errno of the call that failed
  [[nodiscard]] Result<Domain> create(const std::string& extra_config, std::uint64_t nb_pages,
                                      const DomainState& parent);
  /// Somebody else destroyed it.
  void is_gone() noexcept { created_ = false; }

 private:
  XenCalls& calls_;
  std::string name_;
  bool created_ = false;
};

}  // namespace snowfabric::xen
