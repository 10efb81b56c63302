// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <expected>
#include <string>
#include <utility>

namespace snowfabric {

/// Control-path error: a positive errno and the failed call with its operands.
struct Error {
  int errnum;
  std::string what;
};

template <class T>
using Result = std::expected<T, Error>;

/// Shorthand for `return std::unexpected(Error{...})`.
[[nodiscard]] inline std::unexpected<Error> fail(int errnum, std::string what) {
  return std::unexpected(Error{errnum, std::move(what)});
}

}  // namespace snowfabric
