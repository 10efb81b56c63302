// SPDX-License-Identifier: BSD-3-Clause
// Precompiled for the tests, which include what they need all the same.
#include <algorithm>
#include <chrono>
#include <expected>
#include <functional>
#include <memory>
#include <ranges>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
