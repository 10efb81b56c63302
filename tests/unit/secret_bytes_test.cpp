// SPDX-License-Identifier: BSD-3-Clause
#include "fabric/base/secret_bytes.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "fabric/base/frame_number.hpp"
#include "fabric/base/unique_fd.hpp"
#include "memserver-dpdk/aside_memory.hpp"

namespace snowfabric {
namespace {

constexpr std::size_t kFileBytes = 4 * kPageSize;

/// Hands out parts of a memory file, which outlives what was in them.
template <class T>
struct FileSource {
  [[nodiscard]] T* allocate(std::size_t n) {
    T* const first = reinterpret_cast<T*>(next);
    next += n * sizeof(T);
    return first;
  }
  void deallocate(T* /*first*/, std::size_t /*n*/) noexcept {}
  inline static std::byte* next = nullptr;
};
using FileBytes = std::vector<std::byte, WipingAllocator<std::byte, FileSource>>;

struct SecretBytesTest : ::testing::Test {
  void SetUp() override {
    ASSERT_EQ(ftruncate(file.get(), kFileBytes), 0);
    base = mmap(nullptr, kFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    ASSERT_NE(base, MAP_FAILED);
    FileSource<std::byte>::next = static_cast<std::byte*>(base);
  }
  void TearDown() override { munmap(base, kFileBytes); }
  /// Bytes in the file that are not zero.
  [[nodiscard]] std::ptrdiff_t nb_left() const {
    std::array<std::byte, kFileBytes> bytes{};
    EXPECT_EQ(pread(file.get(), bytes.data(), bytes.size(), 0), std::ssize(bytes));
    return std::ranges::count_if(bytes, [](std::byte b) { return b != std::byte{0}; });
  }

  UniqueFd file{memfd_create("secret", MFD_CLOEXEC)};
  void* base = nullptr;
};

TEST_F(SecretBytesTest, NothingIsLeftOfWhatEnds) {
  {
    const FileBytes page(kPageSize, std::byte{7});
    EXPECT_EQ(nb_left(), kPageSize);
  }
  EXPECT_EQ(nb_left(), 0);
}

TEST_F(SecretBytesTest, NothingIsLeftWhereItWasBeforeItGrew) {
  FileBytes page(kPageSize, std::byte{7});
  page.reserve(2 * kPageSize);
  EXPECT_EQ(nb_left(), kPageSize);
}

TEST(AsideMemory, NothingIsLeftOfCopiesThatAreWiped) {
  // Event: of four pages one is copied aside, one with bytes given, one is left out.
  std::vector<std::byte> live(4 * kPageSize, std::byte{7});
  const auto made = AsideMemory::make(live);
  ASSERT_TRUE(made);
  AsideMemory& memory = **made;
  memory.set_aside(Gfn{0});
  memory.set_aside(Gfn{1}, std::vector<std::byte>(kPageSize, std::byte{8}));
  memory.leave_out(Gfn{2});
  memory.leave_out(Gfn{0});  // too late: it keeps its copy, and is wiped with it
  const auto first_byte = [&](std::uint64_t page) {
    std::byte first;
    memory.copy(Gfn{page}, 0, {&first, 1});
    return first;
  };
  EXPECT_EQ(first_byte(0), std::byte{7});
  EXPECT_EQ(first_byte(1), std::byte{8});
  // Expected: no copy is left, and where the parent has its pages they stay.
  memory.wipe_copies();
  for (const std::uint64_t page : {0U, 1U, 2U}) EXPECT_EQ(first_byte(page), std::byte{0}) << page;
  EXPECT_EQ(first_byte(3), std::byte{7});
  EXPECT_EQ(live, std::vector<std::byte>(4 * kPageSize, std::byte{7}));
}

}  // namespace
}  // namespace snowfabric
