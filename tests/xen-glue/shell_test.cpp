// SPDX-License-Identifier: BSD-3-Clause
#include "xen-glue/shell.hpp"

#include <elf.h>

#include <cerrno>
#include <cstring>

#include <gtest/gtest.h>

#include "tests/xen-glue/fake_xen.hpp"

namespace snowfabric::xen::test {
namespace {

constexpr DomId kDom{3};
constexpr std::uint64_t kNbPages = kShellPages + 3000;

class ShellTest : public testing::Test {
 protected:
  ShellTest() { parent.context.assign(kPageSize, std::byte{0x42}); }
  Result<void> make() {
    return make_shell(Domain{xen, kDom}, kNbPages, parent,
                      [this](std::uint64_t done) { nb_done = done; });
  }

  FakeXen xen;
  FakeDomain& shell = xen.add(kDom, kShellPages, 1, 3000);
  DomainState parent{.context = {},
                     .tsc = {.mode = 2, .elapsed_ns = 77, .khz = 1'000'000, .incarnation = 3},
                     .nb_vcpus = 1,
                     .eager = {},
                     .target_kib = 25'000};
  std::uint64_t nb_done = 0;
};

TEST_F(ShellTest, HasTheParentsPagesEvictedAndItsStateAndStandsStill) {
  const auto made = make();
  ASSERT_TRUE(made) << made.error().what;
  EXPECT_EQ(nb_done, kNbPages);
  EXPECT_EQ(shell.info.nb_paged_pages, kNbPages);
  EXPECT_EQ(shell.context, parent.context);
  EXPECT_EQ(shell.tsc, parent.tsc);
  EXPECT_EQ(shell.nb_pauses, 1U);
  EXPECT_GE(shell.max_pages, kNbPages);
  EXPECT_EQ(xen.store["/local/domain/3/memory/static-max"], std::to_string(kNbPages * 4));
  EXPECT_EQ(xen.store["/local/domain/3/memory/target"], "25000");
  EXPECT_EQ(xen.nb_mapped, 0U);
}

TEST_F(ShellTest, APageThatXenWillNotEvictIsNamed) {
  shell.referred = {Gfn{2000}};
  const auto made = make();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().errnum, EBUSY);
  EXPECT_EQ(made.error().what, "evict gfn 0x7d0 of domain 3, which has never run");
}

struct Failing {
  Call call;
  const char* what;
};
class ShellError : public ShellTest, public testing::WithParamInterface<Failing> {};

TEST_P(ShellError, NamesTheCall) {
  xen.fail(GetParam().call, EIO);
  const auto made = make();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().errnum, EIO);
  EXPECT_EQ(made.error().what, GetParam().what);
  EXPECT_EQ(shell.nb_pauses, 1U);
}

INSTANTIATE_TEST_SUITE_P(
    EveryCall, ShellError,
    testing::Values(Failing{Call::kInfo, "info of domain 3"},
                    Failing{Call::kMaxPages, "set the most memory of domain 3"},
                    Failing{Call::kStoreWrite, "write /local/domain/3/memory/static-max"},
                    Failing{Call::kEnable, "enable memory paging of domain 3"},
                    Failing{Call::kPopulate, "populate of domain 3, gfn 0x1000"},
                    Failing{Call::kEvict, "evict a page of domain 3, gfn 0x0"},
                    Failing{Call::kSetTsc, "set TSC of domain 3"},
                    Failing{Call::kSetContext, "set HVM context of domain 3"}));

TEST(ShellKernel, IsAnElfThatXenEntersAtItsNote) {
  const auto file = shell_kernel();
  Elf64_Ehdr header;
  ASSERT_GE(file.size(), sizeof header);
  std::memcpy(&header, file.data(), sizeof header);
  EXPECT_EQ(std::memcmp(header.e_ident, ELFMAG, SELFMAG), 0);
  EXPECT_EQ(header.e_type, ET_EXEC);
  Elf64_Phdr note;
  std::memcpy(&note, file.data() + header.e_phoff + sizeof note, sizeof note);
  EXPECT_EQ(note.p_type, static_cast<unsigned>(PT_NOTE));
  const std::byte* at = file.data() + note.p_offset;
  EXPECT_EQ(std::memcmp(at + sizeof(Elf64_Nhdr), "Xen", 4), 0);
  std::uint32_t entry = 0;
  std::memcpy(&entry, at + sizeof(Elf64_Nhdr) + 4, sizeof entry);
  EXPECT_EQ(entry, header.e_entry);
  EXPECT_EQ(file[entry - 0x100000], std::byte{0xfa});  // cli
}

TEST(ShellConfig, HasTablesForTheParentsSizeButNotItsMemory) {
  const DomainState parent{.context = {}, .tsc = {}, .nb_vcpus = 4, .eager = {}};
  const auto config = shell_config("web-1", "/tmp/k", 262'144, parent);
  for (const char* line : {"name = \"web-1\"\n", "type = \"pvh\"\n", "kernel = \"/tmp/k\"\n",
                           "memory = 16\n", "vcpus = 4\n", "shadow_memory = 12\n"})
    EXPECT_NE(config.find(line), std::string::npos) << line << config;
}

}  // namespace
}  // namespace snowfabric::xen::test
